"""Links and codes that are mailed: what for, how long they are good, how often they are sent."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

# Seconds between two mails of a kind to one address: doubled with each mail, up to the longest.
# Whoever does not ask for a day starts again.
PAUSE = timedelta(seconds=60)
LONGEST_PAUSE = timedelta(hours=1)
FORGOTTEN = timedelta(days=1)
_SHOWN = 1
# Not strftime's, which are of the process's language.
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


class Purpose(StrEnum):
    """What a mailed secret is for; the values of the tables' column."""

    VERIFY = "verify"
    CHANGE = "change"
    RESET = "reset"
    SIGN_IN = "sign_in"


LIFETIMES = {
    Purpose.VERIFY: timedelta(hours=24),
    Purpose.CHANGE: timedelta(hours=1),
    Purpose.RESET: timedelta(hours=1),
    Purpose.SIGN_IN: timedelta(minutes=15),
}


@dataclass(frozen=True, slots=True)
class MailedSecret:
    """The row behind one mail; what is secret in it is derived from its id."""

    id: UUID
    user_id: UUID
    email: str
    """Where it was sent, normalised."""
    used_at: datetime | None = None
    session_id: UUID | None = None
    """The session that asked for it, if it was one."""


class Change(StrEnum):
    """What changed in how one signs in, as a mail says it."""

    APP_ADDED = "An authenticator app was added to your Finity account as a second factor."
    PASSKEY_ADDED = "A passkey was added to your Finity account."
    APP_REMOVED = "The authenticator app was removed from your Finity account."
    PASSKEY_REMOVED = "A passkey was removed from your Finity account."
    CODES_REPLACED = "Your Finity account has new recovery codes; the old ones work no more."
    CODE_USED = "A recovery code of your Finity account was used and works no more."
    IDENTITY_UNLINKED = "An account with another provider was unlinked from your Finity account."
    UNPROVED_LOGIN_REMOVED = (
        "The password of your Finity account was removed: it was set before anybody had shown"
        " that this address is theirs. Set a new one if you like."
    )


@dataclass(frozen=True, slots=True)
class Proof:
    """What somebody read in a mail: the secret of its link, or its code and where it came."""

    secret: str = ""
    email: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """Whether a mail may be sent now, and when the next one may be."""

    granted: bool
    next_at: datetime


def say_time(at: str) -> str:
    """Returns an ISO 8601 time as a mail says it: "25 November 2026, 13:46 UTC"."""
    time = datetime.fromisoformat(at).astimezone(UTC)
    return f"{time.day} {_MONTHS[time.month - 1]} {time.year}, {time:%H:%M} UTC"


def mask(email: str) -> str:
    """Returns an address as somebody else may see it: "a…@example.com"."""
    local, _, domain = email.rpartition("@")
    return f"{local[:_SHOWN]}…@{domain}"
