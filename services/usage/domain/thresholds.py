"""
Shares of a month's credits that a user is told of when they are spent.

A month's credits are what was spent in it and what is left: carried over or granted
meanwhile, for whoever spends does not care. Held credits are not spent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Crossing:
    """A share that an account has just reached."""

    user_id: UUID
    month: date
    percent: int
    used: int
    """Credits spent in the month."""
    available: int
    """Credits left, not below 0."""


@dataclass(slots=True)
class Spending:
    """What one process knows of an account's month."""

    month: date
    used_before: int
    """Credits ever spent before the month."""
    told: int
    """The highest share its user was told of in the month, percent."""


def month_of(now: datetime) -> date:
    """Returns the first day of the calendar month, UTC."""
    return now.astimezone(UTC).date().replace(day=1)


def bounds(month: date) -> tuple[datetime, datetime]:
    """Returns when a month begins and when the next one does."""
    following = (month + timedelta(days=31)).replace(day=1)
    first, last = (datetime(day.year, day.month, 1, tzinfo=UTC) for day in (month, following))
    return first, last


def highest(percents: Sequence[int], told: int, used: int, left: int) -> int:
    """
    Returns the highest share that is reached and was not told, 0 if none is.

    The more was used the more is reached: what credits ever spent do not reach,
    those of the month do not either.
    """
    reached = [p for p in percents if p > told and used > 0 and used * (100 - p) >= left * p]
    return max(reached, default=0)
