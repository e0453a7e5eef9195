"""What is proven of a ledger: that an account is what its entries, grants and tool calls say."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID


class Check(StrEnum):
    """What must be equal; the values of usage_verifications.faults."""

    CHAIN = "chain"
    """Each entry follows from the one before: version by one, balance by its amount."""
    VERSION = "version"
    """The account has the version of its last entry."""
    BALANCE = "balance"
    """The account's balance is the sum of its entries."""
    GRANTED = "granted"
    """What was granted is the sum of grants, expiries, voids and adjustments."""
    GRANTS = "grants"
    """The balance is what is left in the grants that count, less the debt."""
    DRAWS = "draws"
    """What is left of each grant is its amount less all its draws."""
    USED = "used"
    """What was used is the sum of the hourly sums."""
    USAGE = "usage"
    """The hourly sums are the recorded calls less their corrections, where calls are kept."""
    CALLS = "calls"
    """The hourly counts are the recorded calls, where calls are kept."""
    HOLDS = "holds"
    """What is reserved is the sum of the open reservations."""


# So long the calls of hours that did not change are not counted again.
WHOLE_EVERY = timedelta(days=1)


class Fault(NamedTuple):
    """Two numbers of an account that should be one."""

    user_id: UUID
    check: Check
    expected: int
    found: int


@dataclass(frozen=True, slots=True)
class Proven:
    """An account as it was when it was last proven; a new one for a proof from the start."""

    user_id: UUID
    version: int = 0
    balance: int = 0
    granted: int = 0
    grant_ids: tuple[UUID, ...] = ()
    remaining: tuple[int, ...] = ()
    """What each of them had left."""
    at: datetime | None = None
    xmin: int | None = None
    """Transactions before this one were over then; None: calls of every hour are counted."""


def hour_of(now: datetime) -> datetime:
    """Returns the first instant of the hour, in UTC."""
    return now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
