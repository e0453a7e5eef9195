"""Refresh tokens: rotation, races, grace, replay, lifetimes, logout."""

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from chassis.errors import Code, Refusal
from chassis.postgres import Connection
from services.auth.domain.sessions import Session, digest, write_refresh_token
from services.auth.errors import SessionEnded
from services.auth.service.sessions import Tokens
from services.auth.store import sessions as store_sessions
from tests.factories import (
    POLICY,
    REFRESH_KEY,
    AuthRoom,
    an_address,
    at_once,
    log_in,
    reason_of,
)
from tests.fakes import FakeClock
from tests.running import PASSWORD

GRACE = POLICY.grace.total_seconds()
REUSE = POLICY.reuse.total_seconds()


async def login(auth: AuthRoom) -> Tokens:
    """Registers somebody new and opens a session."""
    email = an_address()
    await auth.accounts.register(email=email, password=PASSWORD, key=None)
    tokens, _ = await log_in(auth, email)
    return tokens


async def fifty_refresh(auth: AuthRoom, token: str) -> list[Any]:
    return await at_once(50, lambda _: auth.sessions.refresh(token))


async def refused(call: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await call
    assert caught.value.code is Code.UNAUTHENTICATED
    return caught.value


async def ends(owner: Connection) -> tuple[str | None, str | None]:
    """Returns why and by whom the only session ended."""
    row = await owner.fetchrow("SELECT end_reason, ended_by FROM sessions")
    return row["end_reason"], row["ended_by"]


async def test_a_refresh_rotates(auth: AuthRoom, owner: Connection, clock: FakeClock) -> None:
    """A refresh gives new tokens of the same session; the lifetime of the session stays."""
    first = await login(auth)
    clock.advance(minutes=1)
    second = await auth.sessions.refresh(first.refresh_token)
    assert second.refresh_token != first.refresh_token
    assert second.access_token != first.access_token
    assert second.access_token_expires_at == clock.now() + POLICY.access_token
    assert second.session.id == first.session.id
    assert second.session.expires_at == first.session.expires_at
    stored = await owner.fetchval("SELECT refresh_token FROM sessions")
    assert stored == digest(second.refresh_token)


async def test_a_session_is_where_it_was_seen_last(auth: AuthRoom, owner: Connection) -> None:
    """A refresh moves its address, but for one that comes from nobody knows where."""
    tokens = await login(auth)
    for address, expected in [("192.0.2.1", "192.0.2.1"), (None, "192.0.2.1"), ("::1", "::1")]:
        tokens = await auth.sessions.refresh(tokens.refresh_token, address)
        assert await owner.fetchval("SELECT host(address) FROM sessions") == expected


async def test_the_access_token_outlives_a_refresh(auth: AuthRoom, clock: FakeClock) -> None:
    """A refresh does not end the access token before; only its lifetime does."""
    first = await login(auth)
    await auth.sessions.refresh(first.refresh_token)
    clock.advance(minutes=14)
    await auth.verifier.verify(first.access_token)
    clock.advance(minutes=1)
    assert await reason_of(auth.verifier.verify(first.access_token)) == "TOKEN_EXPIRED"


@pytest.mark.usefixtures("every_connection")
async def test_fifty_refreshes_have_one_successor(auth: AuthRoom, clock: FakeClock) -> None:
    """Of 50 who use one token at once all get the same successor, in every round."""
    token = (await login(auth)).refresh_token
    for round_ in range(1, 11):
        clock.advance(minutes=20)
        answers = await fifty_refresh(auth, token)
        assert {answer.session.counter for answer in answers} == {round_}
        assert len({answer.refresh_token for answer in answers}) == 1
        token = answers[0].refresh_token


@pytest.mark.usefixtures("every_connection")
async def test_read_then_update_would_fork(auth: AuthRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a rotation that reads and then updates gives several successors."""

    async def unguarded(
        conn: Connection,
        *,
        session_id: UUID,
        counter: int,
        refresh_digest: str,
        access_token_id: str,
        idle_since: datetime,
        address: str | None,
        now: datetime,
    ) -> Session | None:
        session = await store_sessions.get_session(conn, session_id)
        if session is None or session.counter != counter:
            return None
        await asyncio.sleep(0.05)
        await conn.execute(
            "UPDATE sessions SET counter = counter + 1, refresh_token = $2, access_token = $3,"
            " refreshed_at = $4 WHERE id = $1",
            session_id,
            refresh_digest,
            access_token_id,
            now,
        )
        return await store_sessions.get_session(conn, session_id)

    token = (await login(auth)).refresh_token
    monkeypatch.setattr(store_sessions, "rotate_session", unguarded)
    answers = await fifty_refresh(auth, token)
    # The counter runs ahead of those who come late: they pass for replays.
    assert len({answer.refresh_token for answer in answers if isinstance(answer, Tokens)}) > 1


async def test_in_the_grace_two_older_tokens_are_good(auth: AuthRoom, clock: FakeClock) -> None:
    """Up to 10 s after a refresh they get the current one; one yet older ends the session."""
    tokens = [await login(auth)]
    for _ in range(3):
        clock.advance(minutes=1)
        tokens.append(await auth.sessions.refresh(tokens[-1].refresh_token))
    clock.advance(seconds=GRACE)
    for older in tokens[1:-1]:
        answer = await auth.sessions.refresh(older.refresh_token)
        assert answer.refresh_token == tokens[-1].refresh_token
        await auth.verifier.verify(answer.access_token)
    # Stolen long ago and shown right after its owner has refreshed.
    stolen = await refused(auth.sessions.refresh(tokens[0].refresh_token))
    assert stolen.reason == "REFRESH_TOKEN_REPLAYED"
    assert await reason_of(auth.verifier.verify(tokens[-1].access_token)) == "TOKEN_REVOKED"


async def test_a_lost_answer_logs_nobody_out(auth: AuthRoom, clock: FakeClock) -> None:
    """The token just before the current one still gets it up to the cap, many times over."""
    first = await login(auth)
    lost = await auth.sessions.refresh(first.refresh_token)
    for _ in range(3):
        clock.advance(seconds=REUSE / 3)
        again = await auth.sessions.refresh(first.refresh_token)
        assert again.refresh_token == lost.refresh_token
    clock.advance(microseconds=1)
    assert (await refused(auth.sessions.refresh(first.refresh_token))).reason == (
        "REFRESH_TOKEN_REPLAYED"
    )


async def test_a_replay_ends_the_session(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """An older token after the grace ends the session, thief and owner alike, and says why."""
    first = await login(auth)
    second = await auth.sessions.refresh(first.refresh_token)
    third = await auth.sessions.refresh(second.refresh_token)
    clock.advance(seconds=GRACE, microseconds=1)
    replay = await refused(auth.sessions.refresh(first.refresh_token))
    assert replay.reason == "REFRESH_TOKEN_REPLAYED"
    assert await ends(owner) == ("refresh_token_replayed", "system")
    for token in (first, second, third):
        again = await refused(auth.sessions.refresh(token.refresh_token))
        assert (again.reason, again.metadata) == (
            "SESSION_ENDED",
            {"end_reason": "refresh_token_replayed"},
        )
        assert await reason_of(auth.verifier.verify(token.access_token)) == "TOKEN_REVOKED"


async def test_fifty_replays_are_told_once(auth: AuthRoom, clock: FakeClock) -> None:
    """Of 50 replays at once one ends the session, the others find it ended."""
    first = await login(auth)
    second = await auth.sessions.refresh(first.refresh_token)
    await auth.sessions.refresh(second.refresh_token)
    clock.advance(seconds=GRACE + 1)
    answers = await fifty_refresh(auth, first.refresh_token)
    reasons = sorted(answer.reason for answer in answers)
    assert reasons == ["REFRESH_TOKEN_REPLAYED"] + 49 * ["SESSION_ENDED"]


async def test_an_idle_session_is_over(auth: AuthRoom, owner: Connection, clock: FakeClock) -> None:
    """A session not refreshed for 30 days is over, which is recorded; a refresh starts anew."""
    tokens = await login(auth)
    for _ in range(2):
        clock.advance(days=30, microseconds=-1)
        tokens = await auth.sessions.refresh(tokens.refresh_token)
    clock.advance(days=30)
    refusal = await refused(auth.sessions.refresh(tokens.refresh_token))
    assert (refusal.reason, refusal.metadata) == ("SESSION_ENDED", {"end_reason": "idle"})
    assert await ends(owner) == ("idle", "system")


async def test_no_refresh_prolongs_the_absolute_lifetime(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """After 90 days a session and its last token are over, however often it was refreshed."""
    tokens = await login(auth)
    for days in (29, 29, 29):
        clock.advance(days=days)
        tokens = await auth.sessions.refresh(tokens.refresh_token)
    clock.advance(days=3, seconds=-60)
    tokens = await auth.sessions.refresh(tokens.refresh_token)
    assert tokens.access_token_expires_at == tokens.session.expires_at
    clock.advance(seconds=60)
    assert await reason_of(auth.verifier.verify(tokens.access_token)) == "TOKEN_EXPIRED"
    refusal = await refused(auth.sessions.refresh(tokens.refresh_token))
    assert (refusal.reason, refusal.metadata) == ("SESSION_ENDED", {"end_reason": "expired"})
    assert await ends(owner) == ("expired", "system")


async def refresh_and_logout(auth: AuthRoom, tokens: Tokens) -> list[Any]:
    """Four refreshes of one token and four logouts, at once."""

    async def call(index: int) -> Tokens | None:
        if index % 2 == 0:
            return await auth.sessions.refresh(tokens.refresh_token)
        await auth.sessions.logout(tokens.session.id, by="user")
        return None

    return await at_once(8, call)


async def test_no_token_survives_a_logout(auth: AuthRoom, owner: Connection) -> None:
    """Whoever wins the race of a logout and a refresh, nothing is good after it."""
    for _ in range(20):
        tokens = await login(auth)
        answers = await refresh_and_logout(auth, tokens)
        for answer in (answer for answer in answers if answer is not None):
            if isinstance(answer, Tokens):
                assert await reason_of(auth.verifier.verify(answer.access_token)) == "TOKEN_REVOKED"
                refresh = auth.sessions.refresh(answer.refresh_token)
                assert await reason_of(refresh) == "SESSION_ENDED"
            else:
                assert isinstance(answer, SessionEnded)
                assert answer.metadata == {"end_reason": "logout"}
        assert await reason_of(auth.sessions.refresh(tokens.refresh_token)) == "SESSION_ENDED"
    living = await owner.fetchval("SELECT count(*) FROM sessions WHERE ended_at IS NULL")
    assert living == 0


async def test_logging_out_again_changes_nothing(auth: AuthRoom, owner: Connection) -> None:
    """The first logout is the one recorded; one of an unknown session is none."""
    tokens = await login(auth)
    await auth.sessions.logout(tokens.session.id, by="user:1")
    await auth.sessions.logout(tokens.session.id, by="user:2")
    await auth.sessions.logout(uuid4(), by="user:2")
    assert await ends(owner) == ("logout", "user:1")


async def test_a_refresh_token_logs_out(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """With an access token that is long over, by any token of the session, once."""
    first = await login(auth)
    clock.advance(days=1)
    second = await auth.sessions.refresh(first.refresh_token)
    await auth.sessions.revoke_token(first.refresh_token, "192.0.2.1")
    assert await ends(owner) == ("logout", f"user:{first.session.user_id}")
    assert await reason_of(auth.verifier.verify(second.access_token)) == "TOKEN_REVOKED"
    ended = await owner.fetchval("SELECT ended_at FROM sessions")
    clock.advance(seconds=1)
    await auth.sessions.revoke_token(second.refresh_token, "192.0.2.1")
    assert await owner.fetchval("SELECT ended_at FROM sessions") == ended


async def test_revoking_what_is_no_token_changes_nothing(auth: AuthRoom, owner: Connection) -> None:
    """Garbage, forged tokens, unknown sessions and counters to come are answered alike."""
    tokens = await login(auth)
    for token in (
        "x",
        tokens.access_token,
        write_refresh_token(bytes(32), tokens.session.id, 0),
        write_refresh_token(REFRESH_KEY, uuid4(), 0),
        write_refresh_token(REFRESH_KEY, tokens.session.id, 1),
    ):
        await auth.sessions.revoke_token(token, None)
    assert await ends(owner) == (None, None)
    await auth.sessions.refresh(tokens.refresh_token)


async def test_what_was_not_issued_here_is_invalid(auth: AuthRoom) -> None:
    """Garbage, forged tokens, unknown sessions and counters to come are told alike."""
    tokens = await login(auth)
    session_id = tokens.session.id
    forged = [
        "x",
        tokens.access_token,
        tokens.refresh_token[:-1],
        tokens.refresh_token + "A",
        write_refresh_token(bytes(32), session_id, 0),
        write_refresh_token(REFRESH_KEY, uuid4(), 0),
        write_refresh_token(REFRESH_KEY, session_id, 1),
        write_refresh_token(REFRESH_KEY, session_id, 2**31 - 1),
    ]
    for token in forged:
        assert (await refused(auth.sessions.refresh(token))).reason == "REFRESH_TOKEN_INVALID"
    await auth.sessions.refresh(tokens.refresh_token)


async def test_a_deleted_session_is_unknown(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """A token of a session that was swept away is REFRESH_TOKEN_INVALID."""
    tokens = await login(auth)
    async with owner.transaction():
        clock.advance(days=91)
        assert await store_sessions.delete_old_sessions(owner, clock.now()) == 1
    refusal = await refused(auth.sessions.refresh(tokens.refresh_token))
    assert refusal.reason == "REFRESH_TOKEN_INVALID"
