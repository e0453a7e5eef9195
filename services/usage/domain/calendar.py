"""
Windows of time: minutes of UTC, days and months of a time zone.

A window has a name that sorts by time: 2026-11-25T14:03, 2026-11-25 or 2026-11.
Windows of one kind follow each other without gap or overlap whatever the zone's
clocks do: each ends at the instant at which the next one begins.
"""

from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
# Files of the database that are no place's time.
_NOT_ZONES = {"Factory", "localtime"}


class Window(StrEnum):
    """After what a quota refills; the values of usage_quotas.time_window."""

    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"


@cache
def known_zones() -> frozenset[str]:
    """Returns the names of the IANA time zones there are."""
    return frozenset(available_timezones() - _NOT_ZONES)


@cache
def zone(name: str) -> tzinfo:
    """Returns a time zone; UTC for one that another machine knew and this one does not."""
    return ZoneInfo(name) if name in known_zones() else UTC


def period_of(window: Window, now: datetime, time_zone: str) -> str:
    """Returns the name of the window that `now` is in."""
    if window is Window.MINUTE:
        return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M")
    day = now.astimezone(zone(time_zone)).date()
    # Clocks that are set back over midnight show a date that was over already.
    if _midnight(day + DAY, time_zone) <= now:
        day += DAY
    while _midnight(day, time_zone) > now:
        day -= DAY
    return day.isoformat() if window is Window.DAY else day.isoformat()[:7]


def begin_of(window: Window, period: str, time_zone: str) -> datetime:
    """Returns the instant at which a window begins."""
    if window is Window.MINUTE:
        return _minute(period)
    return _midnight(_first_day(window, period), time_zone)


def end_of(window: Window, period: str, time_zone: str) -> datetime:
    """Returns the instant at which a window ends and the next one begins."""
    if window is Window.MINUTE:
        return _minute(period) + MINUTE
    first = _first_day(window, period)
    if window is Window.DAY:
        return _midnight(first + DAY, time_zone)
    return _midnight((first + timedelta(days=31)).replace(day=1), time_zone)


def _minute(period: str) -> datetime:
    return datetime.fromisoformat(period).replace(tzinfo=UTC)


def _first_day(window: Window, period: str) -> date:
    return date.fromisoformat(period if window is Window.DAY else f"{period}-01")


def _midnight(day: date, time_zone: str) -> datetime:
    """
    Returns the instant at which a date begins.

    A midnight that clocks skip is the instant at which they skip it, one they show
    twice the first of the two (fold=0, PEP 495).
    """
    return datetime(day.year, day.month, day.day, tzinfo=zone(time_zone)).astimezone(UTC)
