"""Login of a plugin or device (RFC 8628): its codes, and where it stands."""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from services.auth.domain.sessions import Acr, EndReason, Session

# Letters that make no words and are not taken for digits (RFC 8628 section 6.1).
ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"
CODE_LETTERS = 8
USER_CODES = len(ALPHABET) ** CODE_LETTERS
DEVICE_CODE_BYTES = 32
LIFETIME = timedelta(minutes=10)
INTERVAL_SECONDS = 5
# Added to the interval by every poll that comes too early (RFC 8628 section 3.5).
SLOWER_SECONDS = 5
# 34.5 bits and five guesses: one in 2^32 (RFC 8628 section 5.1).
CODE_GUESSES = 5
# Sessions that end so were not taken away from anybody.
_NO_HARM = {EndReason.LOGOUT, EndReason.EXPIRED, EndReason.IDLE}


@dataclass(frozen=True, slots=True)
class DevicePolicy:
    """Where devices send their users, and how many may wait."""

    verification_uri: str = "http://localhost:3000/device"
    codes_per_address: int = 20
    """Logins of one address that may wait at once."""


@dataclass(frozen=True, slots=True)
class Approval:
    """Who approved, in which session, and what that session had proved."""

    user_id: UUID
    session_id: UUID
    amr: tuple[str, ...]
    acr: Acr
    authenticated_at: datetime


class Standing(StrEnum):
    """Where a login stands; all but the first two are final."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    CLAIMED = "claimed"


@dataclass(frozen=True, slots=True)
class DeviceLogin:
    """A login a device asked for."""

    id: UUID
    client_name: str
    address: str
    """IP address of the device, "" if unknown."""
    created_at: datetime
    expires_at: datetime
    interval_seconds: int
    """Seconds there must be between two polls."""
    approval: Approval | None = None
    denied_at: datetime | None = None
    claimed_at: datetime | None = None

    def standing(self, now: datetime) -> Standing:
        if self.claimed_at is not None:
            return Standing.CLAIMED
        if self.denied_at is not None:
            return Standing.DENIED
        if self.expires_at <= now:
            return Standing.EXPIRED
        return Standing.APPROVED if self.approval else Standing.PENDING


def spell_user_code(number: int) -> str:
    """Returns the code of a number below USER_CODES as it is shown: "XXXX-XXXX"."""
    letters = ""
    for _ in range(CODE_LETTERS):
        number, place = divmod(number, len(ALPHABET))
        letters = ALPHABET[place] + letters
    return f"{letters[:4]}-{letters[4:]}"


def digest_user_code(key: bytes, typed: str) -> str:
    """
    Returns what is stored of a code, however it was typed: its HMAC-SHA256 in hex.

    A bare digest of 34.5 bits would be guessed in seconds by whoever reads the table.
    """
    letters = "".join(letter for letter in typed.upper() if letter in ALPHABET)
    return hmac.digest(key, letters.encode(), hashlib.sha256).hex()


def withdrawn(approver: Session | None) -> bool:
    """
    Tells whether the session that approved was taken away since.

    A changed password or a ban ends sessions; what such a session approved must
    not open another one. Whoever only logged out meant to approve.
    """
    if approver is None:
        return True
    return approver.ended_at is not None and approver.end_reason not in _NO_HARM
