"""Sums of usage: calendar periods in any zone, the same as the single calls, by an index alone."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from services.usage.domain.metering import Event, Outcome
from services.usage.domain.reports import LONGEST, Period, cuts, find_zone, on_whole_hours
from services.usage.service.reports import Report, ReportService
from services.usage.service.use_cases import UseCases
from services.usage.store import accounts, metering
from services.usage.store import reports as store
from tests.contracts.test_schema import Recorder, analyse
from tests.factories import (
    ledger_faults,
    make_account,
    make_event,
    make_user,
    reason_of,
)
from tests.fakes import FakeClock

HOUR = timedelta(hours=1)
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "America/Sao_Paulo",
    "Asia/Beirut",
    "Africa/Cairo",
    "Pacific/Apia",
    "Pacific/Auckland",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
]
hours = st.integers(0, 24 * 365 * 40).map(lambda n: datetime(1990, 1, 1, tzinfo=UTC) + n * HOUR)
spans = st.integers(1, 24 * 70).map(lambda n: n * HOUR)


def label(moment: datetime, period: Period, zone: Any) -> tuple[int, ...]:
    """The calendar's own name of the period an instant is in."""
    if period is Period.HOUR:
        return tuple(moment.astimezone(UTC).timetuple()[:4])
    if period is Period.RANGE:
        return ()
    return tuple(moment.astimezone(zone).timetuple()[: 2 if period is Period.MONTH else 3])


@given(start=hours, span=spans, period=st.sampled_from(Period), name=st.sampled_from(ZONES))
@settings(max_examples=300)
def test_cuts_are_where_the_calendar_turns(
    start: datetime, span: timedelta, period: Period, name: str
) -> None:
    """Cuts rise and cover the range; two instants share a period if the calendar says so."""
    zone, end = ZoneInfo(name), start + span
    found = cuts(start, end, period, zone)
    assert all(one < other for one, other in pairwise(found))
    assert found[0] <= start < end <= found[-1]
    assert found[1] > start
    assert found[-2] < end
    for before, after in pairwise(found):
        inside = [before, after - timedelta(seconds=1)]
        assert len({label(moment, period, zone) for moment in inside}) == 1
    if period is not Period.RANGE:
        for cut in found[1:-1]:
            assert label(cut, period, zone) != label(cut - timedelta(seconds=1), period, zone)


def test_a_day_of_a_change_has_23_or_25_hours() -> None:
    """Where clocks change at midnight the day begins when it first comes, or would have."""
    for name, day, length in (
        ("Europe/Berlin", (2026, 3, 29), 23),
        ("Europe/Berlin", (2026, 10, 25), 25),
        ("America/Havana", (2026, 3, 8), 23),
        ("America/Havana", (2026, 11, 1), 25),
        ("Asia/Beirut", (2026, 3, 29), 23),
    ):
        noon = datetime(*day, 12, tzinfo=ZoneInfo(name)).astimezone(UTC)
        begins, ends = cuts(noon, noon + HOUR, Period.DAY, ZoneInfo(name))
        assert (ends - begins) / HOUR == length, name
    # Samoa went from the 29th of December straight to the 31st.
    zone = ZoneInfo("Pacific/Apia")
    start = datetime(2011, 12, 29, 12, tzinfo=zone).astimezone(UTC)
    found = cuts(start, start + 24 * HOUR, Period.DAY, zone)
    assert [cut.astimezone(zone).day for cut in found] == [29, 31, 1]


def test_a_zone_is_whole_where_it_cuts() -> None:
    """Only a period that begins inside the range counts, with the offset it has then."""
    start = datetime(2026, 1, 10, tzinfo=UTC)
    for name, period, whole in (
        ("Asia/Kolkata", Period.DAY, False),
        ("Asia/Kolkata", Period.HOUR, True),
        ("Asia/Kolkata", Period.MONTH, True),
        ("Asia/Kathmandu", Period.DAY, False),
        ("Europe/Berlin", Period.DAY, True),
        # Eleven hours in summer, ten and a half in winter.
        ("Australia/Lord_Howe", Period.DAY, True),
    ):
        end = start + timedelta(days=9)
        found = cuts(start, end, period, ZoneInfo(name))
        assert on_whole_hours(start, end, found) is whole, name
    winter = datetime(2026, 7, 1, tzinfo=UTC)
    found = cuts(winter, winter + 48 * HOUR, Period.DAY, ZoneInfo("Australia/Lord_Howe"))
    assert not on_whole_hours(winter, winter + 48 * HOUR, found)


@pytest.mark.parametrize(
    "name", ["Mars/Olympus", "America", "../../etc/passwd", "/etc/localtime", "europe/berlin/x"]
)
def test_an_unknown_zone_is_none(name: str) -> None:
    assert find_zone(name) is None


@pytest.fixture
def reports(usage: UseCases) -> ReportService:
    return ReportService(usage.room)


async def summarize(
    reports: ReportService,
    user_id: UUID,
    start: datetime,
    end: datetime,
    period: Period = Period.RANGE,
    *,
    by_tool: bool = False,
    time_zone: str = "",
    limit: int = 1000,
    after: tuple[int, str] | None = None,
) -> Report:
    return await reports.summarize(
        user_id=user_id,
        start=start,
        end=end,
        period=period,
        by_tool=by_tool,
        time_zone=time_zone,
        after=after,
        limit=limit,
    )


async def collected(
    reports: ReportService, limit: int, *args: Any, **kw: Any
) -> dict[tuple[datetime, str], tuple[int, int]]:
    """Reads page after page; a group on two pages fails."""
    sums: dict[tuple[datetime, str], tuple[int, int]] = {}
    after = None
    while True:
        page = await summarize(reports, *args, after=after, limit=limit, **kw)
        assert len(page.totals) <= limit
        for total in page.totals:
            key = (page.cuts[total.period - 1], total.tool_name)
            assert key not in sums
            sums[key] = (total.calls, total.credits)
        if page.last is None:
            return sums
        after = page.last


ranges = st.tuples(
    st.integers(0, 24 * 30), st.integers(1, 24 * 30), st.sampled_from(Period), st.booleans()
)


async def test_sums_are_those_of_the_calls(
    usage_database: Database, owner: Connection, clock: FakeClock, reports: ReportService
) -> None:
    """Whatever is recorded and asked for, the sums are those of the single calls."""
    now = clock.now().replace(minute=0, second=0, microsecond=0)
    first = now - timedelta(days=34)
    call = st.tuples(
        st.integers(0, 33 * 24 * 60), st.sampled_from(["a", "b", "z/x"]), st.integers(0, 9)
    )

    async def check(calls: list[tuple[int, str, int]], asked: Any, zone: str, limit: int) -> None:
        user_id = (await make_user(owner, clock)).id
        times = [first + timedelta(minutes=minute) for minute, _, _ in calls]
        events = [
            Event(uuid7(time), user_id, tool, spent, time)
            for time, (_, tool, spent) in zip(times, calls, strict=True)
        ]
        async with usage_database.transaction() as conn:
            await metering.write_events(conn, events, {})
        offset, length, period, by_tool = asked
        start = first + offset * HOUR
        end = start + length * HOUR
        expected: dict[tuple[datetime, str], list[int]] = {}
        bounds = cuts(start, end, period, ZoneInfo(zone))
        for event in events:
            if start <= event.time < end:
                begins = max(cut for cut in bounds if cut <= event.time)
                total = expected.setdefault((begins, event.tool_name if by_tool else ""), [0, 0])
                total[0] += 1
                total[1] += event.credits
        found = await collected(
            reports, limit, user_id, start, end, period, by_tool=by_tool, time_zone=zone
        )
        assert found == {key: tuple(total) for key, total in expected.items()}

    cases: list[Any] = []

    @given(
        calls=st.lists(call, max_size=40),
        asked=ranges,
        zone=st.sampled_from(["UTC", "Europe/Berlin", "America/Havana", "Pacific/Auckland"]),
        limit=st.sampled_from([1, 3, 1000]),
    )
    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    def gather(**case: Any) -> None:
        cases.append(case)

    gather()
    for case in cases:
        await check(**case)


async def test_a_late_call_counts_in_its_own_hour(
    usage: UseCases, owner: Connection, clock: FakeClock, reports: ReportService
) -> None:
    """A call that is recorded a month later changes the sum of the day on which it happened."""
    user_id = await make_account(owner, clock, credits=100)
    day = clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    early = day - timedelta(days=30)
    for at in (clock.now(), early + 23.99 * HOUR, early + 24 * HOUR):
        (result,) = await usage.metering.record([make_event(user_id, at, credits=7)])
        assert result.outcome is Outcome.ACCEPTED
    report = await summarize(reports, user_id, early, day + 24 * HOUR, Period.DAY)
    by_day = {report.cuts[t.period - 1]: (t.calls, t.credits) for t in report.totals}
    assert by_day == {early: (1, 7), early + 24 * HOUR: (1, 7), day: (1, 7)}
    assert await ledger_faults(owner) == []


async def test_nobody_s_usage_is_nothing(reports: ReportService, clock: FakeClock) -> None:
    """Without calls there are no sums, not even of the range."""
    end = clock.now().replace(minute=0, second=0, microsecond=0)
    report = await summarize(reports, UUID(int=7), end - HOUR, end)
    assert (list(report.totals), report.last) == ([], None)


@pytest.mark.parametrize("period", Period)
async def test_a_report_that_cannot_be_exact_or_short_is_refused(
    reports: ReportService, clock: FakeClock, period: Period
) -> None:
    """RANGE_TOO_LONG past each grouping's bound, UNKNOWN_TIME_ZONE, TIME_ZONE_NOT_WHOLE_HOURS."""
    end = datetime(2026, 11, 1, tzinfo=UTC)
    start = end - LONGEST[period]
    user_id = UUID(int=7)
    assert await reason_of(summarize(reports, user_id, start, end, period)) == ""
    too_long = summarize(reports, user_id, start - HOUR, end, period)
    assert await reason_of(too_long) == "RANGE_TOO_LONG"
    nowhere = summarize(reports, user_id, start, end, period, time_zone="Mars/Olympus")
    assert await reason_of(nowhere) == "UNKNOWN_TIME_ZONE"
    half = summarize(reports, user_id, start, end, period, time_zone="Asia/Kolkata")
    cut = period in (Period.DAY, Period.MONTH)
    assert await reason_of(half) == ("TIME_ZONE_NOT_WHOLE_HOURS" if cut else "")


async def test_a_report_reads_hourly_sums_by_their_index(
    usage_database: Database, auth_database: Database, server_url: str, clock: FakeClock
) -> None:
    """The plan has the index of usage_rollups and no other table; a balance's has its key."""
    now = clock.now()
    async with auth_database.transaction() as conn:
        users = [(await make_user(conn, clock)).id for _ in range(20)]
    events = [make_event(users[n % 20], now - timedelta(minutes=n), credits=0) for n in range(3000)]
    async with usage_database.transaction() as conn:
        await conn.fetchval("SELECT usage_make_partitions($1, $2)", events[-1].time, now)
        await metering.write_events(conn, events, {})
    await analyse(server_url, usage_database)
    async with usage_database.connection() as conn:
        recorder = Recorder(conn)
        await store.sum_usage(
            recorder,
            user_id=users[0],
            start=now - timedelta(days=1),
            end=now,
            begins=[now - timedelta(days=1)],
            by_tool=True,
            after=(0, ""),
            limit=100,
        )
        kinds = Counter(recorder.scans)
        assert {table for _, table in kinds} == {"usage_rollups"}
        assert await recorder.sequential() == []
        watching = Recorder(conn)
        await accounts.get_balances(watching, users)
        assert {table for _, table in watching.scans} == {"credit_accounts"}
