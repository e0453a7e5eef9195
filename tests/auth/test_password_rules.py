"""What may be a password, and how well one resists guessing: the rules by themselves."""

import asyncio
import inspect
import os
import re
import time
from pathlib import Path

import pytest
from finity.auth.v1 import password_pb2
from zxcvbn import feedback, matching

from chassis.callers import PUBLIC
from chassis.calls import Call, enter
from chassis.contract import methods_of
from services.auth.domain.passwords import Hint, Weakness, check_password
from services.auth.errors import PasswordTooWeak
from services.auth.scoring import COMMON_PASSWORDS, estimate
from services.auth.service.passwords import require_acceptable, weakness_of
from services.auth.strength import Strength
from tests.auth.pieces import Gate
from tests.factories import an_address, at_once, reason_of
from tests.running import PASSWORD

EMAIL = "Ada.Lovelace+work@Example.com"
CHECK = methods_of([password_pb2.DESCRIPTOR.services_by_name["PasswordService"]])[
    "/finity.auth.v1.PasswordService/CheckPasswordStrength"
]


@pytest.mark.parametrize(
    "password",
    [
        PASSWORD,
        "correct horse",
        "8 chars!",
        "x" * 7 + "y",
        "x!" * 64,
        "        ",
        "\N{PILE OF POO}" * 8,
        "пароль пароль",
        "line\nbreak\ttab",
        "my lovelace pillows are blue",
        "infinity and beyond",
        "affinity!",
    ],
)
def test_any_characters_make_a_password(password: str) -> None:
    """8 to 128 code points of whatever kind; no rule wants digits, signs or capitals."""
    assert weakness_of(password, EMAIL) is None
    require_acceptable(password, EMAIL)


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("", Weakness.TOO_SHORT),
        ("7 chars", Weakness.TOO_SHORT),
        ("\N{PILE OF POO}" * 7, Weakness.TOO_SHORT),
        ("x" * 129, Weakness.TOO_LONG),
        ("eight\0chars", Weakness.NUL_CHARACTER),
        ("password", Weakness.TOO_COMMON),
        ("PassWord", Weakness.TOO_COMMON),
        ("QWERTYUIOP", Weakness.TOO_COMMON),
        ("12345678", Weakness.TOO_COMMON),
        ("ada.lovelace+work@example.com", Weakness.LIKE_EMAIL),
        ("ADA.LOVELACE", Weakness.LIKE_EMAIL),
        ("adalovelace", Weakness.LIKE_EMAIL),
        ("ada_lovelace_1815", Weakness.LIKE_EMAIL),
        ("lovelace", Weakness.LIKE_EMAIL),
        ("ada.lovelcae", Weakness.LIKE_EMAIL),
        ("example.com", Weakness.LIKE_EMAIL),
        ("example1234", Weakness.LIKE_EMAIL),
        ("Finity-2026", Weakness.PRODUCT_NAME),
        ("xFinity!!1", Weakness.PRODUCT_NAME),
        ("Nova-XFinity AI", Weakness.PRODUCT_NAME),
        ("finityfinity", Weakness.PRODUCT_NAME),
    ],
)
def test_what_is_guessed_first_is_none(password: str, why: Weakness) -> None:
    """Too short, common, like the address or the product's name: each by its name."""
    assert weakness_of(password, EMAIL) is why
    with pytest.raises(PasswordTooWeak) as refusal:
        require_acceptable(password, EMAIL, name="new_password")
    assert refusal.value.reason == "PASSWORD_TOO_WEAK"
    assert refusal.value.metadata == {"why": why.value}
    (violation,) = refusal.value.violations
    assert (violation.field, violation.rule) == ("new_password", f"password.{why}")


def test_the_list_is_passed_in() -> None:
    """The rule itself knows no list: what is common is its caller's to say."""
    assert check_password("hunter2hunter2", email="", common=()) is None
    assert check_password("Hunter2HUNTER2", email="", common={"hunter2hunter2"}) == "too_common"


def test_the_commonest_are_thousands() -> None:
    """Every common password of 8 or more characters is in the list, case-folded, as promised."""
    assert len(COMMON_PASSWORDS) > 11_000
    assert all(len(word) >= 8 and word == word.casefold() for word in COMMON_PASSWORDS)


@pytest.mark.parametrize("email", ["", "a@b.c", "ab@cd.ef", "@", "horse@example.com"])
def test_short_pieces_of_an_address_are_chance(email: str) -> None:
    """Three letters in common, or a word among others, make no password weak."""
    assert weakness_of(PASSWORD, email) is None


@pytest.mark.parametrize(
    ("password", "score", "warning"),
    [
        ("password", 0, Hint.TOP_TEN),
        ("aaaaaaaaaa", 0, Hint.REPEATED_CHARACTER),
        ("abcabcabcabc", 0, Hint.REPEATED_PATTERN),
        ("D0g..................", 1, Hint.REPEATED_CHARACTER),
        ("P@ssw0rd1", 1, Hint.LIKE_COMMON),
        ("drowssap", 0, Hint.LIKE_COMMON),
        ("2015-03-04", 1, Hint.DATE),
        ("4.3.2015\n", 1, Hint.DATE),
        (PASSWORD, 4, None),
        ("x" * 20 + "\N{PILE OF POO}" * 80, 1, Hint.REPEATED_CHARACTER),
    ],
    ids=str,
)
def test_passwords_are_scored(password: str, score: int, warning: Hint | None) -> None:
    """Scores and warnings are zxcvbn's, with substitutions, reversals and repeats."""
    found = estimate(password, "")
    assert (found.score, found.warning) == (score, warning)
    assert bool(found.suggestions) == (score < 3)


def test_an_address_is_guessed_first() -> None:
    """The words of the address lower the score, for this call alone."""
    word = "hephaistos3rasmussen"
    alone = estimate(word, "").score
    assert estimate(word, "hephaistos.3rasmussen@example.com").score < alone
    assert estimate(word, f"{word}@example.com").score == 0
    assert estimate(word, "").score == alone
    assert not matching.RANKED_DICTIONARIES.get("user_inputs")


def test_every_sentence_of_the_advice_has_a_code() -> None:
    """Whatever zxcvbn can say is a Hint, and each Hint has its code in the contract."""
    source = inspect.getsource(feedback)
    said = re.findall(r"_\(\s*((?:[\"'].*?[\"']\s*\\?\s*)+)\)", source, re.DOTALL)
    sentences = {eval(f"({text})".replace("\\\n", " ")) for text in said}  # noqa: S307
    assert len(sentences) > 20
    assert sentences == {str(hint) for hint in Hint}
    for kind, enum, prefix in (
        (Hint, password_pb2.PasswordHintCode, "PASSWORD_HINT_CODE_"),
        (Weakness, password_pb2.PasswordWeakness, "PASSWORD_WEAKNESS_"),
    ):
        names = {name.removeprefix(prefix) for name in enum.keys()}  # noqa: SIM118 - an enum of protobuf is no mapping
        names -= {"UNSPECIFIED"}
        assert names == set(kind.__members__)


def test_substitutions_are_not_multiplied() -> None:
    """zxcvbn would try thousands of readings of these signs; here each stands for one letter."""
    signs = "4@8({[<3691!|70$57+%2" * 6
    calls = 0
    match = matching.dictionary_match

    def count(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        return match(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "dictionary_match", count)
        estimate(signs, an_address())
        ours, calls = calls, 0
        matching.omnimatch(signs[:20])
    assert ours < 20 < calls


async def test_scoring_leaves_the_process() -> None:
    """Another one does the work, and what would not be ready in time is not begun."""
    strength = Strength()
    assert await strength._run(os.getpid) != os.getpid()
    strength._seconds = 5.0

    async def within(seconds: float) -> str:
        enter(Call(CHECK, "test", PUBLIC, time.monotonic() + seconds))
        return await reason_of(strength.estimate(PASSWORD, ""))

    assert await asyncio.create_task(within(4.0)) == "HASHING_BUSY"
    assert await asyncio.create_task(within(60.0)) == ""
    strength.close()


async def test_too_many_are_refused(tmp_path: Path) -> None:
    """More than may wait are HASHING_BUSY at once; then there is room again."""
    strength, gate = Strength(queue=2), Gate(tmp_path)
    held = [asyncio.create_task(strength._run(gate.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    refusals = await at_once(10, lambda _: strength.estimate(PASSWORD, ""))
    assert {refusal.reason for refusal in refusals} == {"HASHING_BUSY"}
    gate.open()
    await asyncio.gather(*held)
    assert await strength.estimate("password", "") == estimate("password", "")
    strength.close()
