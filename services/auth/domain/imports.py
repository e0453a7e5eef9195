"""Accounts that come from another system, and what becomes of each."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

from services.auth.domain.users import Role

EMAIL_CHARACTERS = 254
# Clocks of two systems differ.
SKEW = timedelta(minutes=5)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
# The one of HTML's input type=email, which the contracts' rule is too.
_EMAIL = re.compile(rf"[a-zA-Z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(?:\.{_LABEL})*")


class Rejection(StrEnum):
    """Why a user of an import is not taken."""

    EMAIL_INVALID = "email_invalid"
    ROLE_UNKNOWN = "role_unknown"
    ROLE_DENIED = "role_denied"
    CREATE_TIME_INVALID = "create_time_invalid"
    HASH_FORMAT_UNKNOWN = "hash_format_unknown"
    HASH_TOO_WEAK = "hash_too_weak"
    HASH_TOO_COSTLY = "hash_too_costly"


class Outcome(StrEnum):
    """What became of a user of an import."""

    CREATED = "created"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A user as the other system had it."""

    email: str
    """Normalised."""
    role: Role | None
    """None if nobody here knows it."""
    email_verified: bool
    created: tuple[int, int] | None
    """Seconds since 1970 and nanoseconds; None is now."""
    password_hash: str
    """Empty for an account without a password."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one user."""

    outcome: Outcome
    user_id: UUID | None = None
    rejection: Rejection | None = None


def judge(newcomer: Newcomer, now: datetime) -> Rejection | None:
    """Returns what is wrong with a user, its hash aside."""
    email = newcomer.email
    if len(email) > EMAIL_CHARACTERS or not _EMAIL.fullmatch(email):
        return Rejection.EMAIL_INVALID
    if newcomer.role is None:
        return Rejection.ROLE_UNKNOWN
    if newcomer.role is Role.ADMIN:
        # Administrators are made one by one, with a reason: SetRole.
        return Rejection.ROLE_DENIED
    if created_at(newcomer, now) is None:
        return Rejection.CREATE_TIME_INVALID
    return None


def created_at(newcomer: Newcomer, now: datetime) -> datetime | None:
    """Returns when the account was made, `now` at the latest; None if that cannot be."""
    if newcomer.created is None:
        return now
    seconds, nanos = newcomer.created
    if not 0 <= seconds <= (now + SKEW - _EPOCH).total_seconds() or not 0 <= nanos < 10**9:
        return None
    return min(_EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000), now)
