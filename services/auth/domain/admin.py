"""What administrators look for and may do."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from services.auth.domain.users import Role, User

# Long enough to see what a user sees, too short to live as one; sessions have it as a constraint.
IMPERSONATION = timedelta(minutes=15)
IMPERSONATED = "imp"
"""The authentication method ("amr") of an impersonator's session."""


class UserState(StrEnum):
    """How an account stands; the first of erased, banned and deleting that holds."""

    ACTIVE = "active"
    BANNED = "banned"
    DELETING = "deleting"
    ERASED = "erased"


@dataclass(frozen=True, slots=True)
class UserFilter:
    """Which users to find; whatever is None does not matter."""

    email_prefix: str = ""
    role: Role | None = None
    state: UserState | None = None
    created_from: datetime | None = None
    created_until: datetime | None = None
    """The first time that is too late."""


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which entries of the admin log to list; whatever is None does not matter."""

    target: UUID | None = None
    actor: str | None = None
    action: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    """The first time that is too late."""


def service_may_change(before: Role, after: Role, *, administered: bool) -> bool:
    """
    Tells whether a service may change a role; `administered` is whether there are administrators.

    A service changes what somebody pays for. Its key must not be worth an administrator's
    account, but somebody has to make the first one.
    """
    if before is Role.ADMIN:
        return False
    return after is not Role.ADMIN or not administered


def state_of(user: User, now: datetime) -> UserState:
    """Returns how an account stands now."""
    if user.erased_at is not None:
        return UserState.ERASED
    if user.banned(now):
        return UserState.BANNED
    if user.deletion_requested_at is not None:
        return UserState.DELETING
    return UserState.ACTIVE
