"""Second factors: challenges of held-back sign-ins, recovery codes and the steps of TOTP."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

# How long a challenge waits for its answer.
CHALLENGE_LIFE = timedelta(minutes=5)
# Answers one held-back sign-in takes; mfa_challenges_tries_end is the same.
CHALLENGE_TRIES = 5
# How long an enrolled authenticator app waits for its first code.
ENROLMENT_LIFE = timedelta(minutes=15)
RECOVERY_CODES = 10
TOTP_SECRET_BYTES = 20
TOTP_STEP_SECONDS = 30
_RECOVERY_BYTES = 10
_RECOVERY_GROUP = 4
_MAC_BYTES = 32


class FactorKind(StrEnum):
    """What a factor is."""

    TOTP = "totp"
    PASSKEY = "passkey"


class Purpose(StrEnum):
    """What a challenge is for; the values of mfa_challenges.purpose."""

    SIGN_IN = "sign_in"
    REGISTRATION = "registration"
    ASSERTION = "assertion"


@dataclass(frozen=True, slots=True)
class Factor:
    """One confirmed factor of an account."""

    id: UUID
    kind: FactorKind
    name: str
    created_at: datetime
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class HeldSignIn:
    """A sign-in whose first factor was right, until the second one comes."""

    id: UUID
    user_id: UUID
    token_version: int
    """The user's at that time: what ends tokens ends challenges."""
    amr: tuple[str, ...]
    device: str
    expires_at: datetime


def write_challenge(key: bytes, held: HeldSignIn) -> str:
    """Returns the challenge of a held-back sign-in: signed, and readable to whoever has it."""
    body = json.dumps(
        [
            str(held.id),
            str(held.user_id),
            held.token_version,
            held.amr,
            held.device,
            int(held.expires_at.timestamp()),
        ],
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
    return base64.urlsafe_b64encode(_mac(key, body) + body).decode().rstrip("=")


def read_challenge(key: bytes, text: str, now: datetime) -> HeldSignIn | None:
    """Returns the held-back sign-in of a challenge, or None if it is over or not ours."""
    try:
        raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (binascii.Error, UnicodeEncodeError):
        return None
    mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(key, body)):
        return None
    row_id, user_id, version, amr, device, expires = json.loads(body)
    expires_at = datetime.fromtimestamp(expires, UTC)
    if expires_at <= now:
        return None
    return HeldSignIn(UUID(row_id), UUID(user_id), version, tuple(amr), device, expires_at)


def recovery_code(key: bytes, row_id: UUID) -> str:
    """Returns the code of a row: 80 bits in base32, in groups of four."""
    mac = hmac.digest(key, b"code:" + row_id.bytes, hashlib.sha256)[:_RECOVERY_BYTES]
    text = base64.b32encode(mac).decode().lower()
    return "-".join(text[at : at + _RECOVERY_GROUP] for at in range(0, len(text), _RECOVERY_GROUP))


def recovery_digest(key: bytes, user_id: UUID, code: str) -> bytes:
    """Returns what is stored of a code; case, spaces and hyphens do not matter."""
    plain = "".join(code.split()).replace("-", "").lower()
    return hmac.digest(key, b"digest:" + user_id.bytes + plain.encode(), hashlib.sha256)


def totp_steps(now: datetime) -> Sequence[int]:
    """Returns the time steps whose codes are taken: this one, the one before, the one after."""
    step = int(now.timestamp()) // TOTP_STEP_SECONDS
    # RFC 6238 section 5.2 recommends at most one step for delay; clocks run fast as well.
    return step, step - 1, step + 1


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)
