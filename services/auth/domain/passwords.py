"""What may be a password (OWASP ASVS 5.0, chapter 6.2), and advice for a better one."""

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum

SHORTEST, LONGEST = 8, 128
# Shorter pieces of an address are in many good passwords by chance.
PIECE = 4
# How much of a password may be a piece of the address, and how alike the two may be.
SHARE, ALIKE = 0.5, 0.8
_PRODUCT = re.compile(r"(nova|x?finity|ai)+")


class Weakness(StrEnum):
    """Why a password is not taken."""

    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    NUL_CHARACTER = "nul_character"
    TOO_COMMON = "too_common"
    LIKE_EMAIL = "like_email"
    PRODUCT_NAME = "product_name"


class Hint(StrEnum):
    """A sentence of zxcvbn's advice."""

    STRAIGHT_ROW = "Straight rows of keys are easy to guess."
    KEYBOARD_PATTERN = "Short keyboard patterns are easy to guess."
    REPEATED_CHARACTER = 'Repeats like "aaa" are easy to guess.'
    REPEATED_PATTERN = 'Repeats like "abcabcabc" are only slightly harder to guess than "abc".'
    SEQUENCE = 'Sequences like "abc" or "6543" are easy to guess.'
    RECENT_YEAR = "Recent years are easy to guess."
    DATE = "Dates are often easy to guess."
    TOP_TEN = "This is a top-10 common password."
    TOP_HUNDRED = "This is a top-100 common password."
    VERY_COMMON = "This is a very common password."
    LIKE_COMMON = "This is similar to a commonly used password."
    SINGLE_WORD = "A word by itself is easy to guess."
    NAME_ALONE = "Names and surnames by themselves are easy to guess."
    COMMON_NAME = "Common names and surnames are easy to guess."
    USE_A_FEW_WORDS = "Use a few words, avoid common phrases."
    NO_NEED_FOR_SYMBOLS = "No need for symbols, digits, or uppercase letters."
    ADD_WORDS = "Add another word or two. Uncommon words are better."
    LONGER_KEYBOARD_PATTERN = "Use a longer keyboard pattern with more turns."
    AVOID_REPEATS = "Avoid repeated words and characters."
    AVOID_SEQUENCES = "Avoid sequences."
    AVOID_RECENT_YEARS = "Avoid recent years."
    AVOID_PERSONAL_YEARS = "Avoid years that are associated with you."
    AVOID_PERSONAL_DATES = "Avoid dates and years that are associated with you."
    CAPITALS_HELP_LITTLE = "Capitalization doesn't help very much."
    ALL_CAPITALS_HELP_LITTLE = "All-uppercase is almost as easy to guess as all-lowercase."
    REVERSING_HELPS_LITTLE = "Reversed words aren't much harder to guess."
    SUBSTITUTIONS_HELP_LITTLE = (
        "Predictable substitutions like '@' instead of 'a' don't help very much."
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """How well a password would resist guessing."""

    score: int
    """0 to 4: up to 10^3, 10^6, 10^8, 10^10 guesses, and more."""
    warning: Hint | None
    suggestions: tuple[Hint, ...]


def check_password(password: str, *, email: str, common: Container[str]) -> Weakness | None:
    """
    Returns which rule a password breaks; the one check of whoever sets a password.

    `common` holds the commonest passwords, case-folded. Characters are Unicode
    code points; there are no rules of composition and nothing is trimmed.
    """
    return _misshapen(password) or _guessable(password.casefold(), email.casefold(), common)


def _misshapen(password: str) -> Weakness | None:
    if len(password) < SHORTEST:
        return Weakness.TOO_SHORT
    if len(password) > LONGEST:
        return Weakness.TOO_LONG
    return Weakness.NUL_CHARACTER if "\0" in password else None


def _guessable(password: str, email: str, common: Container[str]) -> Weakness | None:
    if password in common:
        return Weakness.TOO_COMMON
    if _like_email(password, email):
        return Weakness.LIKE_EMAIL
    letters = "".join(filter(str.isalpha, password))
    return Weakness.PRODUCT_NAME if _PRODUCT.fullmatch(letters) else None


def _like_email(password: str, email: str) -> bool:
    """
    Tells whether a password is too like an address; both are case-folded.

    It is if, signs aside, the password is within the address, or the address, its
    local part (with or without its +tag) or the name of its domain makes up half
    of the password or more, or difflib's ratio with one of them is 0.8 or more.
    """
    word = _plain(password)
    if not word:
        return False
    whole = _plain(email)
    if len(word) >= PIECE and word in whole:
        return True
    return any(_much_of(piece, word) or _alike(piece, word) for piece in _pieces(email))


def _pieces(email: str) -> Iterator[str]:
    local, _, domain = email.rpartition("@")
    for piece in (email, local, local.partition("+")[0], domain.partition(".")[0]):
        plain = _plain(piece)
        if len(plain) >= PIECE:
            yield plain


def _much_of(piece: str, word: str) -> bool:
    return piece in word and len(piece) >= SHARE * len(word)


def _alike(piece: str, word: str) -> bool:
    matcher = SequenceMatcher(None, piece, word, autojunk=False)
    # The first two are upper bounds of the third, which is costly.
    return all(
        ratio() >= ALIKE for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    )


def _plain(text: str) -> str:
    """Returns letters and digits alone."""
    return "".join(filter(str.isalnum, text))
