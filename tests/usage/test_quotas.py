"""Quotas as rules and as use cases: which one holds, what it counts, races at its edge."""

import asyncio
import contextlib
import itertools
import re
from collections import Counter as Tally
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.postgres import Connection, Database
from services.usage.domain.calendar import Window, end_of, period_of
from services.usage.domain.metering import Event, Outcome, Result, Short
from services.usage.domain.quotas import (
    EVERY_TOOL,
    Counter,
    Exceeded,
    Limits,
    Quota,
    Scope,
    Unit,
    in_force,
    most_specific,
)
from services.usage.domain.standing import Role
from services.usage.service.use_cases import UseCases
from services.usage.store import accounts, standings
from services.usage.store import quotas as store
from tests.contracts.test_schema import Recorder
from tests.factories import (
    at_once,
    eventually,
    ledger_faults,
    make_account,
    make_event,
    open_usage,
    reason_of,
    sooner_or_later,
)
from tests.fakes import FakeClock

NOW = datetime(2026, 11, 25, 14, 3, 30, tzinfo=UTC)
USER = UUID(int=1)
DAY, MINUTE, MONTH = Window.DAY, Window.MINUTE, Window.MONTH
LIMIT = st.none() | st.integers(0, 6)
QUOTAS = st.lists(
    st.builds(
        Quota,
        scope=st.sampled_from([Scope(user_id=USER), Scope(role=Role.FREE)]),
        tool_name=st.sampled_from(["search", "write", EVERY_TOOL]),
        window=st.sampled_from(list(Window)),
        max_calls=LIMIT,
        max_credits=LIMIT,
        updated_at=st.just(NOW),
    ),
    max_size=10,
    unique_by=lambda quota: (quota.scope, quota.tool_name, quota.window),
)
CALLS = st.lists(st.tuples(st.sampled_from(["search", "write", "draw"]), st.integers(0, 4)))


async def limit(usage: UseCases, scope: Scope | UUID, **fields: Any) -> Quota:
    """Sets a quota of a day for all tools, unless `fields` say otherwise."""
    asked = {"tool_name": EVERY_TOOL, "window": DAY, "max_calls": None, "max_credits": None}
    return await usage.quotas.set_quota(
        Scope(user_id=scope) if isinstance(scope, UUID) else scope, **{**asked, **fields}
    )


async def outcomes(usage: UseCases, events: Sequence[Event]) -> list[Outcome]:
    return [result.outcome for result in await usage.metering.record(events)]


def events_of(user_id: UUID, clock: FakeClock, count: int, **fields: Any) -> list[Event]:
    return [make_event(user_id, clock.now(), **fields) for _ in range(count)]


@pytest.fixture
def noon(clock: FakeClock) -> FakeClock:
    """A time far from the end of a minute, day or month wherever somebody is."""
    clock.advance(seconds=(NOW - clock.now()).total_seconds())
    return clock


@given(QUOTAS)
def test_the_most_specific_scope_holds(quotas: list[Quota]) -> None:
    """(user, tool), (user, *), (role, tool), (role, *): the first that has any, with all of it."""
    for tool in ("search", "draw"):
        scopes = [
            [quota for quota in quotas if (quota.scope, quota.tool_name) == key]
            for key in itertools.product(
                (Scope(user_id=USER), Scope(role=Role.FREE)), (tool, EVERY_TOOL)
            )
        ]
        expected: list[Quota] = next(filter(None, scopes), [])
        holding = most_specific(quotas, tool)
        assert sorted(holding, key=repr) == sorted(expected, key=repr)
    listed = in_force(quotas)
    assert len(set(listed)) == len(listed)
    places = [(quota.tool_name, list(Window).index(quota.window)) for quota in listed]
    assert places == sorted(places)
    holding = [q for t in ("search", "write", "other") for q in most_specific(quotas, t)]
    assert set(listed) == set(holding)


@given(QUOTAS, CALLS)
def test_no_quota_is_exceeded(quotas: list[Quota], calls: list[tuple[str, int]]) -> None:
    """A call is refused if and only if a quota that holds for it has no room; others count."""
    limits = Limits(USER, "UTC", NOW, quotas)
    admitted: list[tuple[str, int]] = []
    for tool, cost in calls:
        holding = most_specific(quotas, tool)
        room = []
        for quota in holding:
            governed = [c for t, c in admitted if quota in most_specific(quotas, t)]
            room.append(
                (quota.max_calls is None or len(governed) < quota.max_calls)
                and (quota.max_credits is None or sum(governed) + cost <= quota.max_credits)
            )
        exceeded = limits.exceeded(tool, cost)
        assert (exceeded is None) == all(room)
        if exceeded is None:
            limits.count(tool, cost)
            admitted.append((tool, cost))
        else:
            full = [quota for quota, fits in zip(holding, room, strict=True) if not fits]
            assert exceeded.resets_at == max(end_of(q.window, period(q), "UTC") for q in full)


def period(quota: Quota) -> str:
    return period_of(quota.window, NOW, "UTC")


@given(
    st.timedeltas(timedelta(0), timedelta(days=365)).map(lambda wait: NOW + wait),
    st.lists(
        st.tuples(
            st.timedeltas(timedelta(0), timedelta(hours=30)),
            st.sampled_from(
                ["UTC", "Pacific/Kiritimati", "Etc/GMT+12", "Europe/Berlin", "America/St_Johns"]
            ),
        ),
        max_size=40,
    ),
)
def test_nobody_gains_by_moving(start: datetime, moves: list[tuple[timedelta, str]]) -> None:
    """Wherever somebody moves and when, no more days are begun than pass, and two more."""
    quota = Quota(Scope(user_id=USER), EVERY_TOOL, DAY, 1, None, NOW)
    counters: dict[tuple[str, Window], Counter] = {}
    now, admitted = start, 0
    for wait, name in moves:
        now += wait
        limits = Limits(USER, name, now, [quota], counters)
        if limits.exceeded("search", 0) is None:
            limits.count("search", 0)
            admitted += 1
        counters |= limits.changed
    # The calendars of the world are 26 hours apart, and have three dates at once.
    assert admitted <= (now - start + timedelta(hours=26)) / timedelta(days=1) + 2


async def test_a_quota_admits_what_it_says(
    usage: UseCases, owner: Connection, noon: FakeClock
) -> None:
    """Calls and credits of a window, all windows at once; the refusal says what there was."""
    user_id = await make_account(owner, noon, credits=1000)
    await limit(usage, user_id, window=MINUTE, max_calls=3)
    await limit(usage, user_id, window=DAY, max_credits=50)
    assert await outcomes(usage, events_of(user_id, noon, 5, credits=10)) == [
        *[Outcome.ACCEPTED] * 3,
        *[Outcome.RATE_LIMIT] * 2,
    ]
    (result,) = await usage.metering.record(events_of(user_id, noon, 1))
    minute = datetime(2026, 11, 25, 14, 4, tzinfo=UTC)
    assert result.why == Exceeded(EVERY_TOOL, MINUTE, Unit.CALLS, 3, 3, minute)
    noon.advance(minutes=1)
    (result,) = await usage.metering.record(events_of(user_id, noon, 1, credits=21))
    midnight = datetime(2026, 11, 26, tzinfo=UTC)
    assert result == Result(
        Outcome.QUOTA_WINDOW, 970, Exceeded(EVERY_TOOL, DAY, Unit.CREDITS, 50, 30, midnight)
    )
    assert await outcomes(usage, events_of(user_id, noon, 1, credits=20)) == [Outcome.ACCEPTED]
    noon.advance(hours=10)
    assert await outcomes(usage, events_of(user_id, noon, 1, credits=50)) == [Outcome.ACCEPTED]
    assert await ledger_faults(owner) == []


async def test_what_is_not_admitted_counts_nowhere(
    usage: UseCases, owner: Connection, noon: FakeClock
) -> None:
    """Duplicates, refusals for want of credits and reused ids leave the count as it was."""
    user_id = await make_account(owner, noon, credits=5)
    await limit(usage, user_id, max_calls=3)
    (known,) = events_of(user_id, noon, 1)
    other = make_event(user_id, noon.now(), event_id=known.id, credits=2)
    (dear,) = events_of(user_id, noon, 1, credits=5)
    assert await outcomes(usage, [known, known, other, dear, dear]) == [
        Outcome.ACCEPTED,
        Outcome.DUPLICATE,
        Outcome.EVENT_ID_REUSED,
        Outcome.NO_CREDITS,
        Outcome.NO_CREDITS,
    ]
    (status,) = await usage.quotas.list_quotas(user_id)
    assert (status.counter.calls, status.counter.credits) == (1, 1)
    # What was recorded is told even when nothing more is admitted.
    await limit(usage, user_id, max_calls=0)
    assert await outcomes(usage, [known, dear]) == [Outcome.DUPLICATE, Outcome.QUOTA_WINDOW]


async def test_old_events_count_when_they_are_admitted(
    usage: UseCases, owner: Connection, noon: FakeClock
) -> None:
    """A quota limits what is admitted: an event of last week counts today."""
    user_id = await make_account(owner, noon, credits=10)
    await limit(usage, user_id, max_calls=2)
    events = [make_event(user_id, noon.now() - timedelta(days=day)) for day in (0, 7, 30)]
    assert await outcomes(usage, events) == [
        Outcome.ACCEPTED,
        Outcome.ACCEPTED,
        Outcome.QUOTA_WINDOW,
    ]


async def test_a_role_limits_whoever_has_no_quota_of_the_own(
    usage: UseCases, owner: Connection, noon: FakeClock
) -> None:
    """A change of a user's or role's quotas is in force for the next call, and so is its end."""
    ada, bob = [await make_account(owner, noon, credits=100) for _ in range(2)]
    await limit(usage, Scope(role=Role.FREE), max_calls=1)
    for user_id in (ada, bob):
        assert await outcomes(usage, events_of(user_id, noon, 2)) == [
            Outcome.ACCEPTED,
            Outcome.QUOTA_WINDOW,
        ]
    await limit(usage, ada, tool_name="search", window=MONTH, max_calls=2)
    # A tool of its own has a count of its own.
    assert await outcomes(usage, events_of(ada, noon, 3)) == [
        *[Outcome.ACCEPTED] * 2,
        Outcome.QUOTA_WINDOW,
    ]
    assert await outcomes(usage, events_of(ada, noon, 1, tool_name="write")) == [
        Outcome.QUOTA_WINDOW
    ]
    await usage.standings.set_role(ada, Role.PRO, 2)
    assert await outcomes(usage, events_of(ada, noon, 1, tool_name="write")) == [Outcome.ACCEPTED]
    assert await usage.quotas.delete_quota(Scope(user_id=ada), "search", MONTH)
    assert not await usage.quotas.delete_quota(Scope(user_id=ada), "search", MONTH)
    assert await usage.quotas.list_quotas(ada) == []
    # A higher limit keeps the count.
    await limit(usage, Scope(role=Role.FREE), max_calls=3)
    assert await outcomes(usage, events_of(bob, noon, 3)) == [
        *[Outcome.ACCEPTED] * 2,
        Outcome.QUOTA_WINDOW,
    ]
    assert await usage.quotas.delete_quota(Scope(role=Role.FREE), EVERY_TOOL, DAY)
    assert await outcomes(usage, events_of(bob, noon, 1)) == [Outcome.ACCEPTED]
    assert await ledger_faults(owner) == []


async def test_who_waited_for_the_lock_sees_what_changed(
    usage: UseCases, owner: Connection, noon: FakeClock
) -> None:
    """A flush that began before a role changed, and waited for it, obeys the new role's quotas."""
    user_id = await make_account(owner, noon, credits=10)
    await limit(usage, Scope(role=Role.PRO), max_calls=0)
    async with owner.transaction():
        await owner.execute("UPDATE credit_accounts SET role = 'pro'")
        waiting = asyncio.create_task(outcomes(usage, events_of(user_id, noon, 1)))
        await eventually(lambda: owner.fetchval("SELECT true FROM pg_locks WHERE NOT granted"))
    assert await waiting == [Outcome.QUOTA_WINDOW]


async def test_a_day_is_the_users(usage: UseCases, owner: Connection, noon: FakeClock) -> None:
    """A day refills at midnight of the account's zone; moving begins none that has begun."""
    user_id = await make_account(owner, noon, credits=100)
    await limit(usage, user_id, max_calls=1)
    await usage.standings.set_time_zone(user_id, "Asia/Tokyo")
    assert await outcomes(usage, events_of(user_id, noon, 1)) == [Outcome.ACCEPTED]
    (status,) = await usage.quotas.list_quotas(user_id)
    assert status.resets_at == datetime(2026, 11, 25, 15, tzinfo=UTC)
    noon.advance(hours=1)
    assert await outcomes(usage, events_of(user_id, noon, 2)) == [
        Outcome.ACCEPTED,
        Outcome.QUOTA_WINDOW,
    ]
    # It is the 26th already, wherever it is called the 25th once more.
    for name in ("America/New_York", "UTC", "Pacific/Pago_Pago"):
        await usage.standings.set_time_zone(user_id, name)
        assert await outcomes(usage, events_of(user_id, noon, 1)) == [Outcome.QUOTA_WINDOW]
    (status,) = await usage.quotas.list_quotas(user_id)
    assert status.resets_at == datetime(2026, 11, 27, 11, tzinfo=UTC)
    assert await ledger_faults(owner) == []


async def test_a_check_only_reads(usage: UseCases, owner: Connection, noon: FakeClock) -> None:
    """It says what the call itself would be answered, and leaves everything as it was."""
    user_id = await make_account(owner, noon, credits=5)
    await limit(usage, user_id, max_calls=1)
    before = await owner.fetchrow("SELECT a::text FROM credit_accounts a")
    assert await usage.quotas.check(user_id, "search", 5) == Result(Outcome.ACCEPTED, 5)
    assert await usage.quotas.check(user_id, "search", 8) == Result(Outcome.NO_CREDITS, 5, Short(3))
    assert await owner.fetchrow("SELECT a::text FROM credit_accounts a") == before
    assert await owner.fetchval("SELECT count(*) FROM usage_windows") == 0
    await usage.metering.record(events_of(user_id, noon, 1))
    checked = await usage.quotas.check(user_id, "search", 0)
    assert [checked] == await usage.metering.record(events_of(user_id, noon, 1, credits=0))
    assert checked.outcome is Outcome.QUOTA_WINDOW
    await usage.accounts.erase_user(user_id)
    assert (await usage.quotas.check(user_id, "search", 0)).outcome is Outcome.ACCOUNT_CLOSED
    assert await usage.quotas.list_quotas(user_id) == []
    assert await reason_of(limit(usage, user_id, max_calls=1)) == "ACCOUNT_CLOSED"
    assert await reason_of(usage.quotas.check(uuid4(), "search", 0)) == "ACCOUNT_NOT_OPEN"
    assert await reason_of(usage.quotas.list_quotas(uuid4())) == "ACCOUNT_NOT_OPEN"
    assert await reason_of(limit(usage, uuid4(), max_calls=1)) == "USER_NOT_FOUND"


@contextlib.asynccontextmanager
async def flushers(database: Database, clock: FakeClock) -> AsyncIterator[list[UseCases]]:
    """Four rooms with a flusher each, as processes have them."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_usage(database, clock)) for _ in range(4)]


async def at_the_edge(database: Database, owner: Connection, clock: FakeClock) -> Tally[Outcome]:
    """50 calls for nothing at once, over four flushers, by somebody who may make 20 a day."""
    user_id = await make_account(owner, clock)
    async with flushers(database, clock) as rooms:
        await limit(rooms[0], user_id, max_calls=20)

        async def call(index: int) -> Outcome:
            while True:
                event = make_event(user_id, clock.now(), credits=0)
                (outcome,) = await outcomes(rooms[index % 4], [event])
                if outcome is not Outcome.ACCOUNT_BUSY:
                    return outcome

        return Tally(await at_once(50, call))


async def test_fifty_at_the_edge(
    usage_database: Database, owner: Connection, noon: FakeClock
) -> None:
    """Of 50 at once exactly as many are admitted as the quota says."""
    for _ in range(5):
        admitted = await at_the_edge(usage_database, owner, noon)
        assert admitted == {Outcome.ACCEPTED: 20, Outcome.QUOTA_WINDOW: 30}
    assert await ledger_faults(owner) == []


async def test_without_the_lock_the_edge_gives_way(
    usage_database: Database, owner: Connection, noon: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the account's lock more are admitted."""
    monkeypatch.setattr(accounts, "LOCK", "")

    async def admits_more() -> bool:
        return (await at_the_edge(usage_database, owner, noon))[Outcome.ACCEPTED] > 20

    assert await sooner_or_later(admits_more)


async def test_quotas_of_a_scope_are_set_one_by_one(
    usage: UseCases, owner: Connection, noon: FakeClock
) -> None:
    """50 set and deleted at once, of a user and a role: what counts them is right."""
    user_id = await make_account(owner, noon)
    scopes = [Scope(user_id=user_id), Scope(role=Role.PRO)]

    async def change(index: int) -> object:
        scope, tool = scopes[index % 2], f"tool-{index % 7}"
        if index % 3:
            return await limit(usage, scope, tool_name=tool, max_calls=index)
        return await usage.quotas.delete_quota(scope, tool, DAY)

    for _ in range(3):
        await at_once(50, change)
        assert await ledger_faults(owner) == []


async def test_an_account_without_quotas_costs_no_statement(
    usage: UseCases, owner: Connection, noon: FakeClock
) -> None:
    """Quotas of others and of other roles cost nobody else a statement."""
    free, limited = [await make_account(owner, noon, credits=100) for _ in range(2)]
    statements: list[str] = []

    async def run(user_id: UUID) -> list[str]:
        # Twice, for the driver asks for types on its own the first time.
        for _ in range(2):
            statements.clear()
            assert await outcomes(usage, events_of(user_id, noon, 1)) == [Outcome.ACCEPTED]
        return list(statements)

    async with usage.room.database.connection() as conn:
        conn.add_query_logger(lambda query: statements.append(query.query))
    # Its quotas, what is used of them, and what is then.
    of_quotas = re.compile("usage_quotas|usage_windows")
    assert len(await run(free)) == 1
    await limit(usage, limited, max_calls=100)
    await limit(usage, Scope(role=Role.PRO), max_calls=100)
    assert not any(map(of_quotas.search, await run(free)))
    assert len([text for text in await run(limited) if of_quotas.search(text)]) == 3


async def test_every_row_is_found_by_an_index(owner: Connection, noon: FakeClock) -> None:
    """Planned as the room's connections plan, nothing of it reads accounts or quotas whole."""
    user_id = await make_account(owner, noon)
    await owner.execute("ANALYZE; SET enable_seqscan = off; SET enable_hashjoin = off")
    recorder = Recorder(owner)
    await standings.find_due(recorder, noon.now(), 10)
    await store.find_quotas(recorder, [user_id], [Role.FREE], ["search"])
    await store.find_counters(recorder, [user_id], ["search"])
    await accounts.lock_books(recorder, [user_id], noon.now())
    assert {table for _, table in recorder.scans} >= {
        "credit_accounts",
        "usage_quotas",
        "usage_roles",
        "usage_windows",
    }
    # Of roles there are three.
    assert {table for kind, table in recorder.scans if kind == "Seq Scan"} <= {"usage_roles"}
