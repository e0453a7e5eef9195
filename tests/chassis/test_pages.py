"""chassis.pages: page tokens that cannot be edited or carried to other filters."""

import base64
import random

import pytest

from chassis.pages import PageTokens
from chassis.refusals import PageTokenInvalid

PAGES = PageTokens(b"k" * 32)
LAST = ("2026-01-01T00:00:00+00:00", "0192e4a0-0000-7000-8000-000000000001")


def test_a_token_holds_its_key() -> None:
    """A token read with the filters it was made for gives back the last row's key."""
    token = PAGES.encode(LAST, "ListUsage:user:1")
    assert PAGES.decode(token, "ListUsage:user:1") == LAST
    assert PAGES.decode(PAGES.encode((), "scope"), "scope") == ()


def test_a_token_is_fit_for_a_url() -> None:
    """A token is made of letters, digits, hyphen and underscore."""
    token = PAGES.encode(("ü?/+ " * 9,), "scope")
    assert token.replace("-", "").replace("_", "").isalnum()
    assert token.isascii()


def test_an_edited_token_is_refused() -> None:
    """A change to any byte of a token, signature or key, is noticed."""
    token = PAGES.encode(LAST, "scope")
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for index in range(len(raw)):
        edited = raw[:index] + bytes([raw[index] ^ 1]) + raw[index + 1 :]
        with pytest.raises(PageTokenInvalid):
            PAGES.decode(base64.urlsafe_b64encode(edited).decode().rstrip("="), "scope")


def test_a_token_belongs_to_its_filters_and_service() -> None:
    """A token is refused with other filters and by a service with another secret."""
    token = PAGES.encode(LAST, "ListUsage:a")
    with pytest.raises(PageTokenInvalid):
        PAGES.decode(token, "ListUsage:b")
    with pytest.raises(PageTokenInvalid):
        PageTokens(b"other" * 8).decode(token, "ListUsage:a")


def test_garbage_is_refused() -> None:
    """Whatever is not a token is refused as one, never a defect."""
    dice = random.Random(1)  # noqa: S311 - seeded on purpose
    printable = [chr(code) for code in range(1, 0x250)]
    garbage = ["", "=", "A", "é", "\0", "....", "A" * 512, "ü" * 512]
    garbage += ["".join(dice.choices(printable, k=dice.randrange(60))) for _ in range(500)]
    for token in garbage:
        with pytest.raises(PageTokenInvalid):
            PAGES.decode(token, "scope")
