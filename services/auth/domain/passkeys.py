"""Passkeys: who asks for them, and challenges that are kept as rows."""

import hashlib
import hmac
from dataclasses import dataclass
from uuid import UUID

# More than anybody has devices for; keeps what a browser is sent small.
MOST_PASSKEYS = 20
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """Whom passkeys are made for (WebAuthn Level 3 section 4)."""

    id: str
    """The domain passkeys are bound to."""
    origins: tuple[str, ...]
    """Pages that may ask for them, e.g. "https://finity.ai"."""
    name: str = "Finity"


# A developer's own machine; browsers let it do without TLS.
LOCAL = RelyingParty("localhost", ("http://localhost:3000",))


@dataclass(frozen=True, slots=True)
class Passkey:
    """A registered passkey."""

    id: UUID
    user_id: UUID
    credential_id: bytes
    public_key: bytes
    sign_count: int
    synced: bool

    @property
    def amr(self) -> str:
        """Its method (RFC 8176): a key in hardware, or one that software copies between devices."""
        return "swk" if self.synced else "hwk"


def challenge_of(key: bytes, row_id: UUID) -> bytes:
    """Returns the challenge of a row: 32 bytes that only we could have made."""
    return row_id.bytes + hmac.digest(key, row_id.bytes, hashlib.sha256)[:_ID_BYTES]


def row_of(key: bytes, challenge: bytes) -> UUID | None:
    """Returns the row of a challenge, or None if it is not ours."""
    if len(challenge) != 2 * _ID_BYTES:
        return None
    row_id = UUID(bytes=challenge[:_ID_BYTES])
    return row_id if hmac.compare_digest(challenge, challenge_of(key, row_id)) else None
