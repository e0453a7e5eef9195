"""The rules of accounts and sessions."""

import string
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth.domain.sessions import (
    EndReason,
    Session,
    Verdict,
    digest,
    judge_reuse,
    over,
    read_refresh_token,
    write_refresh_token,
)
from services.auth.domain.users import normalise_email
from tests.factories import POLICY, REFRESH_KEY

START = datetime(2026, 7, 1, 12, tzinfo=UTC)
SESSION = Session(UUID(int=7), UUID(int=8), 5, START, START + POLICY.absolute, START)
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Ada@Example.COM\n", "ada@example.com"),
        ("e\u0301va@example.com", "\u00e9va@example.com"),
        ("E\u0301VA@example.com", "\u00e9va@example.com"),
        # The capital has no composed form, the small letter has one.
        ("J\u030c@example.com", "\u01f0@example.com"),
    ],
)
def test_an_address_has_one_form(text: str, normal: str) -> None:
    """Spaces around, letter case and Unicode composition make no other address."""
    assert normalise_email(text) == normal


@given(st.text(max_size=40))
def test_normalising_again_changes_nothing(text: str) -> None:
    """The normal form of a normal form is itself."""
    once = normalise_email(text)
    assert normalise_email(once) == once


@given(st.uuids(), st.integers(0, 2**31 - 1))
def test_a_refresh_token_reads_back(session_id: UUID, counter: int) -> None:
    """A refresh token says its session and counter, and is the same text every time."""
    token = write_refresh_token(REFRESH_KEY, session_id, counter)
    assert token == write_refresh_token(REFRESH_KEY, session_id, counter)
    assert read_refresh_token(REFRESH_KEY, token) == (session_id, counter)
    assert read_refresh_token(bytes(32), token) is None


@given(st.integers(0, 48), st.sampled_from(string.ascii_letters + string.digits + "-_"))
def test_no_other_text_is_a_refresh_token(place: int, letter: str) -> None:
    """Changing any character of a refresh token makes it one that was not issued here."""
    token = write_refresh_token(REFRESH_KEY, UUID(int=7), 3)
    forged = token[:place] + letter + token[place + 1 :]
    assert (read_refresh_token(REFRESH_KEY, forged) is None) == (forged != token)


@given(st.text(max_size=80) | st.text(string.ascii_letters + "-_=", max_size=80))
def test_garbage_is_no_refresh_token(text: str) -> None:
    """Any text at all is read without an error."""
    assert read_refresh_token(REFRESH_KEY, text) is None


@pytest.mark.parametrize("suffix", ["=", "\n", "!", " ", "A"])
def test_a_refresh_token_has_one_spelling(suffix: str) -> None:
    """What base64 would overlook makes another text, and no token."""
    token = write_refresh_token(REFRESH_KEY, UUID(int=7), 3)
    assert read_refresh_token(REFRESH_KEY, token + suffix) is None


def test_a_session_lives_until_its_first_end() -> None:
    """A session is over when it was ended, expired or idle, told in that order."""
    idle, absolute = POLICY.idle, POLICY.absolute
    assert over(SESSION, POLICY, START + idle - TICK) is None
    assert over(SESSION, POLICY, START + idle) == EndReason.IDLE
    assert over(SESSION, POLICY, START + absolute) == EndReason.EXPIRED
    fresh = replace(SESSION, refreshed_at=START + absolute - TICK)
    assert over(fresh, POLICY, START + absolute - TICK) is None
    assert over(fresh, POLICY, START + absolute) == EndReason.EXPIRED
    ended = replace(SESSION, ended_at=START, end_reason=EndReason.LOGOUT.value)
    assert over(ended, POLICY, START + absolute) == EndReason.LOGOUT


@pytest.mark.parametrize(
    ("presented", "after", "verdict"),
    [
        (5, POLICY.idle - TICK, Verdict.SUCCESSOR),
        (4, POLICY.grace, Verdict.SUCCESSOR),
        (4, POLICY.reuse, Verdict.SUCCESSOR),
        (4, POLICY.reuse + TICK, Verdict.REPLAYED),
        (3, POLICY.grace, Verdict.SUCCESSOR),
        (3, POLICY.grace + TICK, Verdict.REPLAYED),
        (2, timedelta(), Verdict.REPLAYED),
        (0, timedelta(), Verdict.REPLAYED),
        (0, POLICY.grace + TICK, Verdict.REPLAYED),
        (6, timedelta(), Verdict.UNKNOWN),
        (5, POLICY.idle, Verdict.ENDED),
        (0, POLICY.idle, Verdict.ENDED),
        (6, POLICY.idle, Verdict.ENDED),
    ],
)
def test_reuse_is_judged(presented: int, after: timedelta, verdict: Verdict) -> None:
    """The two before are good in the grace, the last one up to the cap, then it is a replay."""
    assert judge_reuse(SESSION, presented, POLICY, START + after) is verdict


def test_a_strict_policy_leaves_only_the_grace() -> None:
    """With reuse zero even the token just before is a replay after the grace."""
    strict = replace(POLICY, reuse=timedelta())
    after = START + POLICY.grace
    assert judge_reuse(SESSION, 4, strict, after) is Verdict.SUCCESSOR
    assert judge_reuse(SESSION, 4, strict, after + TICK) is Verdict.REPLAYED


def test_a_digest_is_not_the_token() -> None:
    """What is stored of a token is its SHA-256 and tells nothing of it."""
    token = write_refresh_token(REFRESH_KEY, UUID(int=7), 3)
    assert len(digest(token)) == 64
    assert token not in digest(token)
