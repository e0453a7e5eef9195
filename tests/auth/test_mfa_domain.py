"""Second factors: the rules by themselves."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from chassis.settings import SettingsError, load
from services.auth.config import Settings
from services.auth.domain.mfa import (
    HeldSignIn,
    read_challenge,
    recovery_code,
    recovery_digest,
    write_challenge,
)
from services.auth.domain.passkeys import Passkey, RelyingParty, challenge_of, row_of
from services.auth.service.mfa import matching_step
from tests.fakes import FakeClock

KEY = bytes(range(32))
NOW = FakeClock().now().replace(microsecond=0)
HELD = HeldSignIn(
    uuid4(), uuid4(), 3, ("pwd",), "Ada's \N{PERSONAL COMPUTER}", NOW + timedelta(minutes=5)
)
# RFC 6238 appendix B, SHA-1: seconds since the epoch and the last six of the eight digits.
VECTORS = [
    (59, "287082"),
    (1111111109, "081804"),
    (1111111111, "050471"),
    (1234567890, "005924"),
    (2000000000, "279037"),
    (20000000000, "353130"),
]


@pytest.mark.parametrize(("seconds", "code"), VECTORS)
def test_codes_are_those_of_rfc_6238(seconds: int, code: str) -> None:
    """The vectors' code is taken in its step and one to either side, and no further."""
    secret = b"12345678901234567890"
    step = seconds // 30
    for late in (0, 30) if step < 2 else (-30, 0, 30):
        at = datetime.fromtimestamp(seconds + late, UTC)
        assert matching_step(secret, code, at) == step
    for late in (60,) if step < 2 else (-60, 60):
        assert matching_step(secret, code, datetime.fromtimestamp(seconds + late, UTC)) is None
    assert matching_step(secret, "000000", datetime.fromtimestamp(seconds, UTC)) is None


def test_a_challenge_says_who_signed_in() -> None:
    """It comes back as it was until it is over; the largest fits the contract's field."""
    text = write_challenge(KEY, HELD)
    assert read_challenge(KEY, text, NOW) == HELD
    assert read_challenge(KEY, text, HELD.expires_at) is None
    largest = replace(HELD, device="\N{PILE OF POO}" * 100)
    assert len(write_challenge(KEY, largest)) < 2048


def test_a_challenge_cannot_be_made_or_edited() -> None:
    """Another key, an edited text and garbage are no challenge."""
    text = write_challenge(KEY, HELD)
    for forged in (
        write_challenge(bytes(32), HELD),
        "A" + text[1:] if text[0] != "A" else "B" + text[1:],
        text[:-8],
        text + "AAAA",
        "",
        "x",
        "\N{SNOWMAN}",
    ):
        assert read_challenge(KEY, forged, NOW) is None


def test_recovery_codes_are_derived() -> None:
    """A row makes one code of 80 bits; its digest ignores case and hyphens, not the user."""
    row, user = uuid4(), uuid4()
    code = recovery_code(KEY, row)
    assert code == recovery_code(KEY, row)
    assert code not in (recovery_code(KEY, uuid4()), recovery_code(bytes(32), row))
    assert len(code.replace("-", "")) * 5 == 80
    digest = recovery_digest(KEY, user, code)
    assert digest == recovery_digest(KEY, user, code.upper().replace("-", " "))
    assert digest != recovery_digest(KEY, uuid4(), code)
    assert digest != recovery_digest(bytes(32), user, code)


def test_a_passkey_s_challenge_leads_to_its_row() -> None:
    """Only a challenge made with our key does."""
    row = uuid4()
    challenge = challenge_of(KEY, row)
    assert row_of(KEY, challenge) == row
    for forged in (challenge_of(bytes(32), row), row.bytes * 2, challenge[:31], b""):
        assert row_of(KEY, forged) is None


def test_a_passkey_s_method_says_where_its_key_is() -> None:
    """RFC 8176: "hwk" stays in hardware, "swk" is copied between devices."""
    passkey = Passkey(UUID(int=1), UUID(int=2), b"id", b"key", 0, synced=False)
    assert (passkey.amr, replace(passkey, synced=True).amr) == ("hwk", "swk")


def test_the_relying_party_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without origins the domain's own page is the one; what is no JSON is a sentence."""
    assert load(Settings).relying_party() == RelyingParty("localhost", ("http://localhost:3000",))
    monkeypatch.setenv("FINITY_WEBAUTHN_RP_ID", "finity.ai")
    assert load(Settings).relying_party().origins == ("https://finity.ai",)
    monkeypatch.setenv("FINITY_WEBAUTHN_ORIGINS", '["https://a.finity.ai", "https://b.finity.ai"]')
    assert len(load(Settings).relying_party().origins) == 2
    monkeypatch.setenv("FINITY_WEBAUTHN_ORIGINS", "https://finity.ai")
    with pytest.raises(SettingsError, match="FINITY_WEBAUTHN_ORIGINS: must be JSON"):
        load(Settings)
