"""The monthly allowance of a role: once a month, whatever races; changes of role in any order."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from finity.usage.v1 import quota_pb2, quota_pb2_grpc, usage_pb2, usage_pb2_grpc
from grpc import aio
from hypothesis import given
from hypothesis import strategies as st

from chassis.clock import SystemClock
from chassis.postgres import Connection, Database
from services.usage.domain.book import Book
from services.usage.domain.calendar import Window, known_zones, period_of
from services.usage.domain.metering import Outcome, Short
from services.usage.domain.standing import Role, Standing
from services.usage.service.use_cases import UseCases
from services.usage.store import accounts
from suite.ports import free_port
from tests.factories import (
    at_once,
    drop_guards,
    ledger_faults,
    make_account,
    make_event,
    make_terms,
    make_user,
    open_usage,
    reason_of,
    sooner_or_later,
    start_process,
)
from tests.fakes import FakeClock
from tests.running import SERVICE_KEY, bearer

ALLOWANCES = {Role.FREE: 100, Role.PRO: 1000, Role.ADMIN: 1000}
USER = UUID(int=1)
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture
async def november(usage: UseCases, clock: FakeClock) -> FakeClock:
    """25 November 2026, noon, in a house with allowances."""
    clock.advance(seconds=(NOON - clock.now()).total_seconds())
    await usage.standings.set_allowances(ALLOWANCES)
    return clock


async def granted(owner: Connection, user_id: UUID) -> list[tuple[str, int]]:
    rows = await owner.fetch(
        "SELECT source_ref, amount FROM credit_grants WHERE user_id = $1"
        " AND source = 'finity:allowance' ORDER BY source_ref",
        user_id,
    )
    return [tuple(row) for row in rows]


async def available(usage: UseCases, user_id: UUID) -> int:
    return (await usage.accounts.get_balance(user_id)).available


@given(
    st.sampled_from(sorted(known_zones())),
    st.lists(st.timedeltas(timedelta(minutes=1), timedelta(days=45)), min_size=1, max_size=20),
)
def test_each_month_is_granted_once(name: str, waits: list[timedelta]) -> None:
    """Whenever somebody looks: the current month's allowance is there, whole, and no other."""
    standing = Standing(time_zone=name, allowance=100)
    book = Book(USER, 0, 0, 0, 0, 0, 0, None, None, uuid4, standing=standing)
    now, seen = datetime(2026, 1, 1, 12, tzinfo=UTC), set()
    for wait in waits:
        now += wait
        if book.overdue(now):
            book.mature(now)
        month = period_of(Window.MONTH, now, name)
        seen.add(month)
        assert book.available == 100
        assert book.due_at == standing.allowance_until > now
    assert {grant.terms.source_ref for grant in book.granted_now} == seen
    assert len(book.granted_now) == len(seen)
    times = [posting.at for posting in book.postings]
    assert times == sorted(times)
    running = itertools.accumulate(posting.amount for posting in book.postings)
    assert list(running) == [posting.balance_after for posting in book.postings]


@given(
    st.lists(
        st.tuples(st.timedeltas(timedelta(0), timedelta(days=20)), st.sampled_from(list(Role))),
        min_size=1,
        max_size=20,
    )
)
def test_a_month_grants_the_highest_of_its_roles(
    changes: list[tuple[timedelta, Role]],
) -> None:
    """Whatever order roles come in, a month's grants sum up to the highest allowance among them."""
    book = Book(USER, 0, 0, 0, 0, 0, 0, None, None, uuid4, standing=Standing(allowance=100))
    now = NOON
    sums: dict[str, dict[str, int]] = {}
    for wait, role in changes:
        now += wait
        if book.overdue(now):
            book.mature(now)
        book.standing.change_role(role, 1, ALLOWANCES[role], 0)
        book.mature(now)
        book.grant_allowance(now)
        for grant in book.granted_now:
            month = grant.terms.source_ref.partition(":")[0]
            sums.setdefault(month, {})[grant.terms.source_ref] = grant.terms.amount
        month = period_of(Window.MONTH, now, "UTC")
        assert sum(sums[month].values()) == book.standing.allowance_granted
        assert book.standing.allowance_granted >= ALLOWANCES[role]
    refs = [grant.terms.source_ref for grant in book.granted_now]
    assert len(set(refs)) == len(refs)


async def test_an_account_opens_with_the_month_s_allowance(
    usage: UseCases, owner: Connection, november: FakeClock
) -> None:
    """It is there at once, expires with the month, and the next one comes with the next."""
    user_id = (await make_user(owner, november)).id
    balance = await usage.accounts.open_account(user_id)
    assert (balance.available, balance.due_at) == (100, datetime(2026, 12, 1, tzinfo=UTC))
    assert await granted(owner, user_id) == [("2026-11", 100)]
    await usage.metering.record([make_event(user_id, november.now(), credits=40)])
    november.advance(days=5, hours=12)
    assert await available(usage, user_id) == 100
    kinds = await owner.fetch(
        "SELECT kind, amount, created_at FROM credit_entries ORDER BY version"
    )
    first = datetime(2026, 12, 1, tzinfo=UTC)
    assert [tuple(row)[:2] for row in kinds] == [
        ("grant", 100),
        ("use", -40),
        ("expire", -60),
        ("grant", 100),
    ]
    assert [row["created_at"] for row in kinds][2:] == [first, first]
    # Months nobody was there for are not made up.
    november.advance(days=70)
    assert await available(usage, user_id) == 100
    assert [ref for ref, _ in await granted(owner, user_id)] == ["2026-11", "2026-12", "2027-02"]
    assert await ledger_faults(owner) == []


async def test_whoever_locks_grants(
    usage: UseCases, owner: Connection, november: FakeClock
) -> None:
    """A flush, a grant and the sweeper each find the new month's credits and spend them."""
    flushed, given_to, swept = [await make_account(owner, november) for _ in range(3)]
    (result,) = await usage.metering.record([make_event(flushed, november.now(), credits=70)])
    assert (result.outcome, result.available) == (Outcome.ACCEPTED, 30)
    _, balance = await usage.accounts.grant(given_to, make_terms(amount=5))
    assert balance.available == 105
    assert await usage.standings.mature_due() == 1
    assert await granted(owner, swept) == [("2026-11", 100)]
    assert await usage.standings.mature_due() == 0
    november.advance(days=10)
    assert await usage.standings.mature_due() == 3
    assert await usage.standings.mature_due() == 0
    for user_id in (flushed, given_to, swept):
        assert [ref for ref, _ in await granted(owner, user_id)] == ["2026-11", "2026-12"]
    assert await ledger_faults(owner) == []


async def test_there_may_be_no_allowance(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Without one nothing is granted and nothing waits; one that begins counts at once."""
    user_id = await make_account(owner, clock)
    closed = await make_account(owner, clock)
    await usage.accounts.erase_user(closed)
    assert await usage.standings.mature_due() == 0
    (result,) = await usage.metering.record([make_event(user_id, clock.now())])
    assert result.why == Short(1, None)
    await usage.standings.set_allowances(ALLOWANCES)
    assert await usage.standings.mature_due() == 1
    assert await available(usage, user_id) == 100
    # A month that was granted stays as it was.
    await usage.standings.set_allowances({**ALLOWANCES, Role.FREE: 200})
    assert await usage.standings.mature_due() == 0
    (result,) = await usage.metering.record([make_event(user_id, clock.now(), credits=101)])
    until = await owner.fetchval(
        "SELECT allowance_until FROM credit_accounts WHERE user_id = $1", user_id
    )
    assert result.why == Short(1, until)
    assert await granted(owner, closed) == []
    assert await ledger_faults(owner) == []


async def test_a_role_tops_up_once(usage: UseCases, owner: Connection, november: FakeClock) -> None:
    """Up, down and up again within a month is the difference once; a month later it is whole."""
    user_id = (await make_user(owner, november)).id
    await usage.accounts.open_account(user_id)
    roles = [Role.PRO, Role.FREE, Role.PRO, Role.ADMIN]
    for sequence, role in enumerate(roles, 2):
        book = await usage.standings.set_role(user_id, role, sequence)
        assert (book.standing.role, book.available) == (role, 1000)
    assert await granted(owner, user_id) == [("2026-11", 100), ("2026-11:1000", 900)]
    await usage.standings.set_role(user_id, Role.FREE, 9)
    november.advance(days=10)
    assert await available(usage, user_id) == 100
    assert await ledger_faults(owner) == []


async def roles_at_once(
    usage: UseCases, user_id: UUID, changes: Sequence[tuple[int, Role]]
) -> None:
    """Delivers changes of a role all at once."""
    await at_once(
        len(changes), lambda i: usage.standings.set_role(user_id, changes[i][1], changes[i][0])
    )


async def test_an_older_change_of_role_changes_nothing(
    usage: UseCases, owner: Connection, november: FakeClock
) -> None:
    """In whatever order changes come, 50 at once and repeated: the newest stays."""
    dice = random.Random(7)  # noqa: S311
    for _ in range(3):
        user_id = (await make_user(owner, november)).id
        changes = [(sequence, dice.choice(list(Role))) for sequence in range(2, 27)]
        await roles_at_once(usage, user_id, dice.sample(changes * 2, 50))
        row = await owner.fetchrow(
            "SELECT role_sequence, role FROM credit_accounts WHERE user_id = $1", user_id
        )
        assert tuple(row) == changes[-1]
    assert await reason_of(usage.standings.set_role(uuid4(), Role.PRO, 1)) == "USER_NOT_FOUND"
    assert await ledger_faults(owner) == []


async def test_a_closed_account_has_no_role_any_more(
    usage: UseCases, owner: Connection, november: FakeClock
) -> None:
    """Nothing is granted to an erased user, and nothing tells where it was."""
    user_id = await make_account(owner, november)
    await usage.standings.set_time_zone(user_id, "Europe/Berlin")
    await usage.accounts.erase_user(user_id)
    book = await usage.standings.set_role(user_id, Role.PRO, 2)
    assert (book.standing.role, book.available, book.standing.time_zone) == (Role.FREE, 0, "UTC")
    assert await usage.standings.set_time_zone(user_id, "Asia/Tokyo") == "UTC"
    november.advance(days=40)
    assert await usage.standings.mature_due() == 0
    assert await available(usage, user_id) == 0
    assert await ledger_faults(owner) == []


async def test_moving_grants_no_month_twice(
    usage: UseCases, owner: Connection, november: FakeClock
) -> None:
    """At the turn of a month, back and forth over the date line: each month is granted once."""
    user_id = (await make_user(owner, november)).id
    await usage.accounts.open_account(user_id)
    november.advance(days=5)
    for name in ("Pacific/Kiritimati", "Etc/GMT+12", "UTC", "Pacific/Kiritimati", "Asia/Tokyo"):
        await usage.standings.set_time_zone(user_id, name)
        await usage.standings.mature_due()
        november.advance(hours=1)
    assert [ref for ref, _ in await granted(owner, user_id)] == ["2026-11", "2026-12"]
    # November's credits stay until where they were granted it is over; here it is December.
    assert await available(usage, user_id) == 200
    november.advance(hours=12)
    assert await available(usage, user_id) == 100
    due = await owner.fetchval("SELECT allowance_until FROM credit_accounts")
    assert due == datetime(2026, 12, 31, 15, tzinfo=UTC)
    assert await reason_of(usage.standings.set_time_zone(uuid4(), "UTC")) == "ACCOUNT_NOT_OPEN"
    assert await ledger_faults(owner) == []


async def turn_of_the_month(
    database: Database, owner: Connection, clock: FakeClock
) -> list[tuple[str, int]]:
    """50 at once, over four rooms, read, spend, sweep and change what has a new month."""
    user_id = await make_account(owner, clock)
    rooms = []
    async with open_usage(database, clock) as one, open_usage(database, clock) as other:
        rooms = [one, other]
        await one.standings.set_allowances(ALLOWANCES)
        await one.accounts.open_account(user_id)
        clock.advance(days=31)

        async def touch(index: int) -> object:
            room = rooms[index // 4 % 2]
            match index % 4:
                case 0:
                    return await room.accounts.get_balance(user_id)
                case 1:
                    return await room.standings.mature_due()
                case 2:
                    return await room.metering.record([make_event(user_id, clock.now())])
            return await room.standings.set_role(user_id, Role.FREE, index)

        await at_once(50, touch)
    return await granted(owner, user_id)


async def test_fifty_find_one_allowance(
    usage_database: Database, owner: Connection, november: FakeClock
) -> None:
    """Whoever of them is first grants it; nobody else does."""
    for _ in range(3):
        found = await turn_of_the_month(usage_database, owner, november)
        assert [amount for _, amount in found] == [100, 100]
        assert await ledger_faults(owner) == []


async def test_without_the_guards_it_is_granted_more_than_once(
    usage_database: Database,
    owner: Connection,
    november: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: without the lock and the constraints there are several."""
    for table, constraint in (
        ("credit_grants", "credit_grants_source_key"),
        ("credit_entries", "credit_entries_version_key"),
        ("credit_accounts", "credit_accounts_not_overdrawn"),
        ("credit_accounts", "credit_accounts_parts_are_not_negative"),
    ):
        await owner.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
    await drop_guards(owner)
    # One that keeps nobody out.
    monkeypatch.setattr(accounts, "LOCK", "FOR KEY SHARE")

    async def grants_again() -> bool:
        return len(await turn_of_the_month(usage_database, owner, november)) > 2

    assert await sooner_or_later(grants_again)


async def test_two_processes_grant_once(
    database_url: str, redis_url: str, owner: Connection
) -> None:
    """Two services with sweepers, and callers at both: every account has its month's once."""
    clock = FakeClock()
    variables = {
        "FINITY_USAGE_ALLOWANCE_FREE": "10",
        "FINITY_USAGE_ALLOWANCE_PRO": "25",
        "FINITY_SIGNUP_CREDITS": "0",
        "FINITY_LOG_LEVEL": "error",
    }
    users = [await make_account(owner, clock) for _ in range(20)]
    ports = [free_port(), free_port()]
    processes = [
        await start_process("usage", database_url, redis_url, variables, port=port)
        for port in ports
    ]
    service = bearer(SERVICE_KEY)
    try:
        async with (
            aio.insecure_channel(f"127.0.0.1:{ports[0]}") as one,
            aio.insecure_channel(f"127.0.0.1:{ports[1]}") as other,
        ):
            for channel in (one, other):
                await asyncio.wait_for(channel.channel_ready(), 30)

            async def touch(index: int, user_id: UUID) -> None:
                channel = (one, other)[index % 2]
                event = usage_pb2.UsageEvent(
                    event_id=str(make_event(user_id, SystemClock().now()).id),
                    user_id=str(user_id),
                    tool_name="search",
                    credits=1,
                )
                await usage_pb2_grpc.UsageServiceStub(channel).RecordUsageBatch(
                    usage_pb2.RecordUsageBatchRequest(events=[event]), metadata=service, timeout=20
                )
                await quota_pb2_grpc.QuotaServiceStub(channel).SetAccountRole(
                    quota_pb2.SetAccountRoleRequest(
                        user_id=str(user_id), role=quota_pb2.ACCOUNT_ROLE_PRO, sequence=2
                    ),
                    metadata=service,
                    timeout=20,
                )

            await asyncio.gather(*(touch(i, user) for user in users for i in range(6)))
    finally:
        for process in processes:
            await process.kill()
    rows = await owner.fetch(
        "SELECT sum(amount) AS sum FROM credit_grants WHERE source = 'finity:allowance'"
        " GROUP BY user_id"
    )
    assert [row["sum"] for row in rows] == [25] * len(users)
    assert await ledger_faults(owner) == []
