"""The rules of credits and metering; no input, no output, standard library only."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

OLDEST_EVENT = timedelta(days=35)
NEWEST_EVENT = timedelta(minutes=5)
DEFAULT_PRIORITY = 50


class Category(StrEnum):
    """Whether credits were paid for; the values of credit_grants.category."""

    PROMOTIONAL = "promotional"
    PAID = "paid"


class Outcome(Enum):
    """What became of an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    NO_CREDITS = "no_credits"
    ACCOUNT_NOT_OPEN = "account_not_open"
    ACCOUNT_CLOSED = "account_closed"
    EVENT_ID_REUSED = "event_id_reused"
    ACCOUNT_BUSY = "account_busy"


# Tuples, because a flush makes thousands of both: half the cost of frozen dataclasses.
class Event(NamedTuple):
    """One tool call to be metered."""

    id: UUID
    user_id: UUID
    tool_name: str
    credits: int
    time: datetime


@dataclass(frozen=True, slots=True)
class Balance:
    """An account at one instant."""

    user_id: UUID
    granted: int
    used: int
    reserved: int
    overdraft_limit: int
    version: int
    closed_at: datetime | None = None
    """When the user was erased; nothing is granted or spent from then on."""

    @property
    def available(self) -> int:
        return self.granted - self.used - self.reserved


@dataclass(frozen=True, slots=True)
class Terms:
    """What a grant is asked to be."""

    source: str
    source_ref: str
    amount: int
    priority: int
    category: Category


@dataclass(frozen=True, slots=True)
class Grant:
    """Credits with their terms."""

    id: UUID
    user_id: UUID
    terms: Terms
    remaining: int
    created_at: datetime


class Result(NamedTuple):
    """What became of one event, and the credits left when it was decided."""

    outcome: Outcome
    available: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """Credits taken from one grant."""

    grant_id: UUID
    amount: int


@dataclass(slots=True)
class Settlement:
    """What one flush decides: a result for each event and, by account, what to write."""

    results: list[Result] = field(default_factory=list)
    accepted: list[Event] = field(default_factory=list)
    spent: dict[UUID, int] = field(default_factory=lambda: defaultdict(int))


def in_window(time: datetime, now: datetime) -> bool:
    """Tells whether an event's time is accepted: 35 days back to 5 minutes ahead."""
    return now - OLDEST_EVENT <= time <= now + NEWEST_EVENT


def settle(
    events: Sequence[Event],
    accounts: Mapping[UUID, Balance],
    recorded: Iterable[Event],
    busy: Mapping[UUID, Balance] = MappingProxyType({}),
) -> Settlement:
    """
    Decides every event of a flush, in order.

    `accounts` are locked, `busy` are those somebody else holds, as they were a
    moment ago: good for telling a balance, not for spending it. `recorded` are the
    events of these ids that exist already. An event is accepted when its credits
    fit into what is left after those accepted before it.
    """
    settlement = Settlement()
    known = {event.id: event for event in recorded}
    left = {
        user_id: a.available + a.overdraft_limit
        for user_id, a in accounts.items()
        if a.closed_at is None
    }
    for event in events:
        outcome = _decide(event, known.get(event.id), left.get(event.user_id))
        if outcome is Outcome.ACCOUNT_NOT_OPEN and event.user_id in accounts:
            outcome = Outcome.ACCOUNT_CLOSED
        elif outcome is Outcome.ACCOUNT_NOT_OPEN and event.user_id in busy:
            outcome = Outcome.ACCOUNT_BUSY
        if outcome is Outcome.ACCEPTED:
            known[event.id] = event
            left[event.user_id] -= event.credits
            settlement.accepted.append(event)
            settlement.spent[event.user_id] += event.credits
        if event.user_id in left:
            available = left[event.user_id] - accounts[event.user_id].overdraft_limit
        else:
            available = busy[event.user_id].available if event.user_id in busy else 0
        settlement.results.append(Result(outcome, available))
    return settlement


def burn(amount: int, grants: Sequence[tuple[UUID, int]]) -> list[Draw]:
    """
    Takes credits from grants (id, remaining) in the order given, the burn order.

    What no grant covers is overdraft and has no draw.
    """
    draws = []
    for grant_id, remaining in grants:
        if amount == 0:
            break
        taken = min(amount, remaining)
        draws.append(Draw(grant_id, taken))
        amount -= taken
    return draws


def _decide(event: Event, known: Event | None, left: int | None) -> Outcome:
    if known is not None:
        return Outcome.DUPLICATE if known == event else Outcome.EVENT_ID_REUSED
    if left is None:
        return Outcome.ACCOUNT_NOT_OPEN
    return Outcome.ACCEPTED if event.credits <= left else Outcome.NO_CREDITS
