"""The rules of a flush: which of the waiting events are recorded and what they spend."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

from services.usage.domain.accounts import Balance
from services.usage.domain.book import Book
from services.usage.domain.calendar import Window
from services.usage.domain.quotas import Exceeded, Limits

OLDEST_EVENT = timedelta(days=35)
NEWEST_EVENT = timedelta(minutes=5)


class Outcome(Enum):
    """What became of an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    NO_CREDITS = "no_credits"
    ACCOUNT_NOT_OPEN = "account_not_open"
    ACCOUNT_CLOSED = "account_closed"
    EVENT_ID_REUSED = "event_id_reused"
    ACCOUNT_BUSY = "account_busy"
    QUOTA_WINDOW = "quota_window"
    RATE_LIMIT = "rate_limit"


# Tuples, because a flush makes thousands of both: half the cost of frozen dataclasses.
class Event(NamedTuple):
    """One tool call to be metered."""

    id: UUID
    user_id: UUID
    tool_name: str
    credits: int
    time: datetime


class Short(NamedTuple):
    """By how many credits a balance is too small, and when an allowance comes."""

    by: int
    refills_at: datetime | None = None


class Result(NamedTuple):
    """What became of one event, and the credits left when it was decided."""

    outcome: Outcome
    available: int = 0
    why: Short | Exceeded | None = None
    """Of what there was too little, for a refusal that is about that."""


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
    books: Mapping[UUID, Book],
    recorded: Iterable[Event],
    busy: Mapping[UUID, Balance] = MappingProxyType({}),
    limits: Mapping[UUID, Limits] = MappingProxyType({}),
) -> Settlement:
    """
    Decides every event of a flush, in order; nothing is spent yet.

    `books` may be written, `busy` are accounts somebody else holds, as they were a
    moment ago: good for telling a balance, not for spending it. `recorded` are the
    events of these ids that exist already, `limits` those of accounts with quotas. An
    event is accepted when its credits fit into what is left after those accepted before
    it, and the call into every quota that holds for it.
    """
    settlement = Settlement()
    known = {event.id: event for event in recorded}
    left = {user_id: book.spendable for user_id, book in books.items() if book.closed_at is None}
    for event in events:
        user_id, earlier = event.user_id, known.get(event.id)
        remaining = left.get(user_id)
        why: Short | Exceeded | None = None
        if earlier is not None:
            outcome = Outcome.DUPLICATE if earlier == event else Outcome.EVENT_ID_REUSED
        elif remaining is None:
            outcome = _not_open(user_id, books, busy)
        else:
            outcome, why = admit(event, books[user_id], remaining, limits)
            if outcome is Outcome.ACCEPTED:
                known[event.id] = event
                left[user_id] = remaining = remaining - event.credits
                settlement.accepted.append(event)
                settlement.spent[user_id] += event.credits
        if remaining is not None:
            available = remaining - books[user_id].overdraft_limit
        else:
            available = busy[user_id].available if user_id in busy else 0
        settlement.results.append(Result(outcome, available, why))
    return settlement


def admit(
    event: Event, book: Book, left: int, limits: Mapping[UUID, Limits]
) -> tuple[Outcome, Short | Exceeded | None]:
    """
    Decides a new event of an open account with `left` to spend, and counts it.

    Quotas come first: who has used one up is not helped by more credits.
    """
    limit = limits.get(event.user_id)
    if limit is not None:
        exceeded = limit.exceeded(event.tool_name, event.credits)
        if exceeded is not None:
            minute = exceeded.window is Window.MINUTE
            return (Outcome.RATE_LIMIT if minute else Outcome.QUOTA_WINDOW), exceeded
    if event.credits > left:
        return Outcome.NO_CREDITS, Short(event.credits - left, book.standing.refills_at)
    if limit is not None:
        limit.count(event.tool_name, event.credits)
    return Outcome.ACCEPTED, None


def _not_open(user_id: UUID, books: Mapping[UUID, Book], busy: Mapping[UUID, Balance]) -> Outcome:
    if user_id in books:
        return Outcome.ACCOUNT_CLOSED
    return Outcome.ACCOUNT_BUSY if user_id in busy else Outcome.ACCOUNT_NOT_OPEN
