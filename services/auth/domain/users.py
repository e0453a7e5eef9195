"""An account and what it may do."""

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class Role(StrEnum):
    """What a user may do; the values of users.role."""

    FREE = "free"
    PRO = "pro"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class User:
    """An account."""

    id: UUID
    email: str
    role: Role
    token_version: int
    created_at: datetime
    last_login: datetime | None
    email_verified_at: datetime | None = None
    mfa_enabled_at: datetime | None = None
    """While set, a sign-in needs a second factor."""
    banned_at: datetime | None = None
    banned_until: datetime | None = None
    """End of a ban; None with banned_at set is a ban without an end."""
    ban_reason: str | None = None
    deletion_requested_at: datetime | None = None
    erased_at: datetime | None = None
    erasure_due_at: datetime | None = None
    """When an account whose deletion was asked for is erased."""

    def banned(self, now: datetime) -> bool:
        """Tells whether a ban holds now."""
        if self.banned_at is None:
            return False
        return self.banned_until is None or self.banned_until > now


def normalise_email(text: str) -> str:
    """Returns the one form of an address: trimmed, NFC, lower case."""
    # Some letters compose only once they are small.
    return unicodedata.normalize("NFC", text.strip().lower())
