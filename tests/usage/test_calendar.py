"""Windows of time, over every zone there is and whatever its clocks do."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.usage.domain.calendar import (
    Window,
    begin_of,
    end_of,
    known_zones,
    period_of,
    zone,
)

BEGIN = datetime(1985, 1, 1, tzinfo=UTC)
INSTANTS = st.timedeltas(timedelta(0), timedelta(days=55 * 365)).map(lambda age: BEGIN + age)
ZONES = st.sampled_from(sorted(known_zones()))
WINDOWS = st.sampled_from(list(Window))
HOUR = timedelta(hours=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# Clocks that skip midnight, show it twice, go back over it, or leave a whole day out.
@example(Window.DAY, at("2010-11-07T02:31:30"), "America/St_Johns")
@example(Window.DAY, at("2010-11-07T02:30:30"), "America/St_Johns")
@example(Window.DAY, at("2011-12-30T10:00:00"), "Pacific/Apia")
@example(Window.DAY, at("2011-12-30T09:59:59"), "Pacific/Apia")
@example(Window.DAY, at("2026-03-28T22:00:00"), "Asia/Beirut")
@example(Window.DAY, at("2018-02-18T01:30:00"), "America/Sao_Paulo")
@example(Window.MONTH, at("2000-10-31T22:59:59"), "Europe/Berlin")
@given(WINDOWS, INSTANTS, ZONES)
def test_every_instant_is_in_one_window(window: Window, now: datetime, name: str) -> None:
    """A window holds the instant it is the name of; the next one begins where it ends."""
    period = period_of(window, now, name)
    begin, end = begin_of(window, period, name), end_of(window, period, name)
    assert begin <= now < end
    following = period_of(window, end, name)
    assert following > period
    assert begin_of(window, following, name) == end
    assert period_of(window, begin, name) == period
    assert period_of(window, end - datetime.resolution, name) == period


@given(WINDOWS, INSTANTS, st.timedeltas(timedelta(0), timedelta(days=40)), ZONES)
def test_names_rise_with_time(window: Window, now: datetime, later: timedelta, name: str) -> None:
    """Later is never in a window whose name sorts before: what began is not begun again."""
    assert period_of(window, now, name) <= period_of(window, now + later, name)


@given(INSTANTS, ZONES)
def test_days_are_those_of_the_calendar(now: datetime, name: str) -> None:
    """But for the minutes in which clocks go back over midnight, a window is the local date."""
    local = now.astimezone(zone(name)).date().isoformat()
    day = period_of(Window.DAY, now, name)
    # Set back by an hour or so: the date that began once has begun.
    assert day == local or now - begin_of(Window.DAY, day, name) < 2 * HOUR
    assert period_of(Window.MONTH, now, name) == day[:7]


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York", "Asia/Beirut", "UTC"])
def test_a_year_has_its_days(name: str) -> None:
    """365 windows, each a day long but for the two in which clocks are set, 12 months."""
    now, end = begin_of(Window.DAY, "2026-01-01", name), begin_of(Window.DAY, "2027-01-01", name)
    begins = [now]
    while begins[-1] < end:
        begins.append(end_of(Window.DAY, period_of(Window.DAY, begins[-1], name), name))
    lengths = [(later - earlier) / HOUR for earlier, later in pairwise(begins)]
    assert len(lengths) == 365
    odd = sorted(length for length in lengths if length != 24)
    assert odd == ([] if name == "UTC" else [23, 25])
    months = sorted({period_of(Window.MONTH, begin, name) for begin in begins[:-1]})
    assert months == [f"2026-{month:02}" for month in range(1, 13)]


@pytest.mark.parametrize(
    ("name", "month", "begin", "end"),
    [
        ("UTC", "2028-02", "2028-02-01T00:00", "2028-03-01T00:00"),
        ("Europe/Berlin", "2026-03", "2026-02-28T23:00", "2026-03-31T22:00"),
        ("America/New_York", "2026-11", "2026-11-01T04:00", "2026-12-01T05:00"),
        ("Pacific/Kiritimati", "2026-12", "2026-11-30T10:00", "2026-12-31T10:00"),
        ("Asia/Kathmandu", "2026-01", "2025-12-31T18:15", "2026-01-31T18:15"),
    ],
)
def test_months_begin_at_local_midnight(name: str, month: str, begin: str, end: str) -> None:
    """A month is from midnight to midnight of the zone, whatever its offset at either."""
    assert begin_of(Window.MONTH, month, name) == at(begin)
    assert end_of(Window.MONTH, month, name) == at(end)


def test_a_minute_is_of_utc() -> None:
    """A minute is the same everywhere, be the zone's offset odd or not."""
    now = at("2026-11-25T14:03:59.999")
    for name in ("UTC", "Asia/Kathmandu", "Africa/Monrovia"):
        assert period_of(Window.MINUTE, now, name) == "2026-11-25T14:03"
    assert end_of(Window.MINUTE, "2026-11-25T14:03", "UTC") == at("2026-11-25T14:04")


def test_zones_are_those_of_the_database() -> None:
    """Files beside the zones are none; one that is not known here counts as UTC."""
    assert {"UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires"} <= known_zones()
    assert not {"localtime", "Factory", "posixrules", "America"} & known_zones()
    assert zone("Europe/Berlin") == ZoneInfo("Europe/Berlin")
    assert zone("Mars/Olympus") is UTC
