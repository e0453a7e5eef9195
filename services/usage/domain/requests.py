"""What is asked of reservations and leases, and what is answered."""

from datetime import timedelta
from enum import Enum
from typing import NamedTuple
from uuid import UUID

from services.usage.domain.holds import Hold
from services.usage.domain.metering import Event
from services.usage.domain.quotas import Exceeded


class Overage(Enum):
    """Where credits beyond those that were held may come from."""

    REFUSE = "refuse"
    WITHIN_BALANCE = "within_balance"
    OVERDRAFT = "overdraft"


class Outcome(Enum):
    """What became of a request."""

    DONE = "done"
    NO_CREDITS = "no_credits"
    ACCOUNT_NOT_OPEN = "account_not_open"
    ACCOUNT_CLOSED = "account_closed"
    ACCOUNT_BUSY = "account_busy"
    EVENT_ID_REUSED = "event_id_reused"
    NOT_FOUND = "not_found"
    ID_REUSED = "id_reused"
    EXCEEDED = "exceeded"
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"
    FENCED = "fenced"
    QUOTA_WINDOW = "quota_window"
    RATE_LIMIT = "rate_limit"


class Reserve(NamedTuple):
    """Asks for credits to be held."""

    id: UUID
    user_id: UUID
    credits: int
    ttl: timedelta
    tool_name: str


class Commit(NamedTuple):
    """Asks for a hold to be used up."""

    id: UUID
    credits: int
    overage: Overage
    tool_name: str
    """What it was used for; empty is what it is held for."""


class Release(NamedTuple):
    """Asks for a hold to be given back."""

    id: UUID


class Extend(NamedTuple):
    """Asks for a hold to end no sooner than `ttl` from now."""

    id: UUID
    ttl: timedelta


class Lease(NamedTuple):
    """Asks for credits to be held for a holder, whose earlier lease ends."""

    id: UUID
    user_id: UUID
    credits: int
    ttl: timedelta
    holder: str


class Renewal(NamedTuple):
    """Asks for the next lease of the same holder, of as many credits as there are up to these."""

    id: UUID
    credits: int
    ttl: timedelta


class Settle(NamedTuple):
    """Asks for the calls of a lease to be recorded and the rest to be given back."""

    id: UUID
    fence: int
    calls: tuple[Event, ...]
    renewal: Renewal | None = None

    @property
    def used(self) -> int:
        return sum(call.credits for call in self.calls)


class Fence(NamedTuple):
    """The last lease of a holder."""

    number: int
    lease_id: UUID


Request = Reserve | Commit | Release | Extend | Lease | Settle


class Result(NamedTuple):
    """What became of one request."""

    outcome: Outcome
    hold: Hold | None = None
    """The hold after it; that there is, where it was refused."""
    available: int = 0
    asked: int = 0
    """Credits that were refused: all of a new hold, what a commit takes beyond its hold."""
    short: int = 0
    """Those of them that are missing."""
    entry_id: UUID | None = None
    """The entry with which it was used up just now."""
    calls: tuple[Event, ...] = ()
    """Those of a lease that was settled just now."""
    renewed: Hold | None = None
    exceeded: Exceeded | None = None
    """The quota that left no room for it."""
