"""Periods of a report: where hours, days and months begin, and how long a range may be."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LONGEST_EXPORT = timedelta(days=366)


class Period(StrEnum):
    """What a report is cut into; a range as a whole is one period."""

    RANGE = "range"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


LONGEST = {
    Period.RANGE: timedelta(days=1830),
    Period.HOUR: timedelta(days=31),
    Period.DAY: timedelta(days=366),
    Period.MONTH: timedelta(days=1830),
}


class Total(NamedTuple):
    """Calls and credits of one period, and of one tool if it is named."""

    period: int
    """Place of the period in its cuts, from 1."""
    tool_name: str
    calls: int
    credits: int


def find_zone(name: str) -> tzinfo | None:
    """Returns the time zone of an IANA name, UTC for "", None if there is no such zone."""
    if name in ("", "UTC"):
        return UTC
    try:
        return ZoneInfo(name)
    # A folder of zones, such as "America", is a name of the file system's and none of IANA's.
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def cuts(start: datetime, end: datetime, period: Period, zone: tzinfo) -> list[datetime]:
    """
    Returns the instants, rising, at which the periods of a range begin, and the last one's end.

    The first is at or before `start`, the last at or after `end`; hours are UTC's.
    """
    if period is Period.RANGE:
        return [start, end]
    if period is Period.HOUR:
        return [start + n * HOUR for n in range((end - start) // HOUR + 1)]
    found: list[datetime] = []
    for first in _first_days(start.astimezone(zone).date(), period):
        # In a gap of the clock this is its end, of a midnight that comes twice the first.
        begins = datetime(first.year, first.month, first.day, tzinfo=zone).astimezone(UTC)
        # A day that a zone left out has no length.
        if not found or begins > found[-1]:
            found.append(begins)
        if begins >= end:
            break
    return found


def on_whole_hours(start: datetime, end: datetime, found: list[datetime]) -> bool:
    """Tells whether sums by whole hours of UTC can be cut exactly where the range is."""
    return all(cut.minute == cut.second == 0 for cut in found if start < cut < end)


def _first_days(day: date, period: Period) -> Iterator[date]:
    if period is Period.MONTH:
        day = day.replace(day=1)
    while True:
        yield day
        day = (day + 31 * DAY).replace(day=1) if period is Period.MONTH else day + DAY
