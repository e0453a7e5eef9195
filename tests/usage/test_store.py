"""The usage room's SQL; every test is rolled back."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis.ids import uuid7
from chassis.postgres import Connection
from services.usage.domain.grants import Category
from services.usage.domain.metering import Event
from services.usage.errors import BalanceLimit, UserNotFound
from services.usage.service.room import lock_book
from services.usage.store import accounts, grants, metering
from tests.factories import ledger_faults, make_account, make_event, make_grant, make_user
from tests.fakes import FakeClock

MOST = 10**15


async def write(conn: Connection, clock: FakeClock, events: list[Event]) -> None:
    """Writes events that cost nothing, in the month's partitions."""
    times = [event.time for event in events]
    await metering.make_partitions(conn, min(times), max(times))
    await metering.write_events(conn, events, {})


async def test_an_account_opens_once(conn: Connection, clock: FakeClock) -> None:
    """Opening an open account leaves it as it is; one of nobody is USER_NOT_FOUND."""
    user_id = await make_account(conn, clock, credits=7)
    await accounts.open_account(conn, user_id, clock.now())
    balance = (await accounts.get_balances(conn, [user_id]))[user_id]
    assert (balance.granted, balance.available, balance.version) == (7, 7, 1)
    assert await accounts.get_balances(conn, [uuid4()]) == {}
    with pytest.raises(UserNotFound):
        await accounts.open_account(conn, uuid4(), clock.now())


async def test_accounts_are_locked_in_one_order(conn: Connection, clock: FakeClock) -> None:
    """lock_books returns accounts that were opened, by user id."""
    user_ids = [await make_account(conn, clock) for _ in range(5)]
    locked = await accounts.lock_books(conn, [*reversed(user_ids), uuid4()], clock.now())
    assert list(locked) == sorted(user_ids)


async def test_a_grant_is_stored_once(conn: Connection, clock: FakeClock) -> None:
    """A second grant of the same source and source_ref is not stored; another user's is."""
    ada, bob = await make_account(conn, clock), await make_account(conn, clock)
    grant = make_grant(ada, clock, source_ref="invoice-1", category=Category.PAID)
    assert await grants.insert_grant(conn, grant)
    assert not await grants.insert_grant(conn, make_grant(ada, clock, source_ref="invoice-1"))
    assert await grants.insert_grant(conn, make_grant(bob, clock, source_ref="invoice-1"))
    found = await grants.find_grant(conn, ada, "test", "invoice-1")
    assert found is not None
    assert (found.id, found.terms.category, found.activated_at) == (grant.id, Category.PAID, None)


async def test_an_account_has_a_limit(conn: Connection, clock: FakeClock) -> None:
    """An account holds up to 10^15 granted credits; one more is BALANCE_LIMIT."""
    user_id, now = await make_account(conn, clock), clock.now()
    for source_ref, amount in (("most", MOST), ("one more", 1)):
        grant = make_grant(user_id, clock, source_ref=source_ref, amount=amount)
        await grants.insert_grant(conn, grant)
        book = await lock_book(conn, user_id, now)
        book.add(grant, now)
        if source_ref == "most":
            await accounts.write_books(conn, [book], now)
        else:
            with pytest.raises(BalanceLimit):
                await accounts.write_books(conn, [book], now)


async def test_grants_burn_in_order(conn: Connection, clock: FakeClock) -> None:
    """Lower priority first, then sooner expiry, promotional before paid, older first."""
    user_id, start = await make_account(conn, clock), clock.now()
    wanted: list[tuple[int, int | None, Category]] = [
        (10, 9, Category.PAID),
        (50, 1, Category.PAID),
        (50, 2, Category.PROMOTIONAL),
        (50, None, Category.PROMOTIONAL),
        (50, None, Category.PAID),
        (90, 1, Category.PROMOTIONAL),
    ]
    order: list[UUID] = []
    for index, (priority, days, category) in reversed(list(enumerate(wanted))):
        clock.advance(seconds=1)
        expires = start + timedelta(days=days) if days else None
        grant = make_grant(
            user_id,
            clock,
            source_ref=str(index),
            priority=priority,
            category=category,
            expires_at=expires,
        )
        await grants.insert_grant(conn, grant)
        book = await lock_book(conn, user_id, clock.now())
        book.add(grant, clock.now())
        await accounts.write_books(conn, [book], clock.now())
        order.insert(0, grant.id)
    book = await lock_book(conn, user_id, clock.now())
    assert [grant.id for grant in book.grants] == order
    draws = book.spend(250, clock.now()).draws
    assert [tuple(draw) for draw in draws] == [(order[0], 100), (order[1], 100), (order[2], 50)]


async def test_a_flush_is_written_whole(conn: Connection, clock: FakeClock) -> None:
    """Events, account, entry, draws, grants and rollups of a flush agree."""
    user_id, now = await make_account(conn, clock, credits=10), clock.now()
    events = [make_event(user_id, now, credits=cost) for cost in (1, 0, 2)]
    book = await lock_book(conn, user_id, now)
    posting = book.spend(3, now)
    await metering.make_partitions(conn, now, now)
    await accounts.write_books(conn, [book], now)
    await metering.write_events(conn, events, {user_id: posting.id})
    assert await ledger_faults(conn) == []
    balance = (await accounts.get_balances(conn, [user_id]))[user_id]
    assert (balance.used, balance.available, balance.version) == (3, 7, 2)
    found = await metering.find_events(conn, [event.id for event in events])
    assert sorted(found, key=lambda event: event.id) == sorted(events, key=lambda event: event.id)


async def test_what_begins_and_expires_does_so_in_its_order(
    conn: Connection, clock: FakeClock
) -> None:
    """A grant pays debt from when it begins, and only what it has left then expires."""
    user_id, now = await make_account(conn, clock, credits=5), clock.now()
    await conn.execute("UPDATE credit_accounts SET overdraft_limit = 100")
    begins, ends = now + timedelta(hours=1), now + timedelta(hours=2)
    later = make_grant(
        user_id, clock, source_ref="later", amount=10, effective_at=begins, expires_at=ends
    )
    book = await lock_book(conn, user_id, now)
    book.spend(8, now)
    await grants.insert_grant(conn, later)
    book.add(later, now)
    await accounts.write_books(conn, [book], now)
    assert (book.available, book.debt, book.due_at) == (-3, 3, begins)
    book = await lock_book(conn, user_id, begins)
    assert (book.available, book.debt, book.due_at) == (7, 0, ends)
    # Nobody looked until both were over: the same, and seven of them are lost.
    book = await lock_book(conn, user_id, now + timedelta(days=1))
    assert (book.available, book.debt, book.granted, book.due_at) == (0, 0, 8, None)
    assert [(posting.kind, posting.amount, posting.at) for posting in book.postings] == [
        ("grant", 10, begins),
        ("expire", -7, ends),
    ]
    await accounts.write_books(conn, [book], now + timedelta(days=1))
    # The use above has no events.
    left = {"used = sum of events", "used = sum of rollups", "an entry = its events"}
    assert set(await ledger_faults(conn)) == left


UNBALANCED = {
    "without an entry": "UPDATE credit_accounts SET granted = granted + 1",
    "with a version that has no entry": "UPDATE credit_accounts SET version = version + 1",
    "with another grant": "UPDATE credit_grants SET remaining = 9",
    "with debt": "UPDATE credit_accounts SET debt = 1",
}


@pytest.mark.parametrize("change", UNBALANCED.values(), ids=UNBALANCED)
async def test_the_database_refuses_an_unbalanced_account(
    conn: Connection, clock: FakeClock, change: str
) -> None:
    """Even SQL written by hand cannot let an account differ from its ledger and its grants."""
    await make_account(conn, clock, credits=10)
    touch = "UPDATE credit_accounts SET updated_at = updated_at"
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await conn.execute("; ".join((change, touch)))
    assert caught.value.constraint_name == "credit_accounts_balance"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE credit_accounts SET used = granted + 1",
        "UPDATE credit_accounts SET reserved = granted + 1",
        "UPDATE credit_accounts SET granted = -1, overdraft_limit = 5",
        "UPDATE credit_accounts SET used = -1",
        "UPDATE credit_grants SET remaining = -1",
        "UPDATE credit_grants SET remaining = amount + 1",
    ],
)
async def test_the_database_refuses_a_negative_account(
    conn: Connection, clock: FakeClock, change: str
) -> None:
    """Even SQL written by hand cannot overdraw an account or a grant."""
    await make_account(conn, clock, credits=10)
    with pytest.raises(asyncpg.CheckViolationError):
        await conn.execute(change)


MISPLACED = {
    "of nobody": ("nobody", 10, 10, 1),
    "of a user without an account": ("without", 10, 10, 1),
    "before the first one": ("with", 10, 10, 0),
    "that leaves one out": ("with", -1, 9, 3),
    "that takes more than it says": ("with", -1, 8, 2),
    "that begins with more than it says": ("new", 10, 11, 1),
}


@pytest.mark.parametrize("entry", MISPLACED.values(), ids=MISPLACED)
async def test_the_database_refuses_an_entry_that_follows_none(
    conn: Connection, clock: FakeClock, entry: tuple[str, int, int, int]
) -> None:
    """Even SQL written by hand cannot add an entry but after the last one of its account."""
    users = {
        "with": await make_account(conn, clock, credits=10),
        "new": await make_account(conn, clock),
        "without": (await make_user(conn, clock)).id,
        "nobody": uuid4(),
    }
    whose, amount, after, version = entry
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await conn.execute(_INSERT_ENTRIES, users[whose], [amount], [after], [version])
    assert caught.value.constraint_name == "credit_entries_follow"


_INSERT_ENTRIES = (
    "INSERT INTO credit_entries (id, user_id, kind, amount, balance_after, version, created_at)"
    " SELECT gen_random_uuid(), $1, 'adjust', amount, after, version, now()"
    " FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS e (amount, after, version)"
)


async def test_entries_of_one_statement_follow_each_other(
    conn: Connection, clock: FakeClock
) -> None:
    """Each of them is compared: here the last one is right, for the one before it."""
    user_id = await make_account(conn, clock, credits=10)
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await conn.execute(_INSERT_ENTRIES, user_id, [-1, -1], [8, 7], [2, 3])
    assert caught.value.constraint_name == "credit_entries_follow"


async def test_an_entry_follows_those_of_its_own_statement(
    conn: Connection, clock: FakeClock
) -> None:
    """Whatever order they are written in."""
    user_id = await make_account(conn, clock, credits=10)
    await conn.execute(_INSERT_ENTRIES, user_id, [-1, -1], [8, 9], [3, 2])


async def test_an_account_has_one_entry_a_version(conn: Connection, clock: FakeClock) -> None:
    """Two writers that read the same version cannot both write."""
    user_id = await make_account(conn, clock, credits=10)
    with pytest.raises(asyncpg.UniqueViolationError):
        await conn.execute(
            "INSERT INTO credit_entries (id, user_id, kind, amount, balance_after, version,"
            " created_at) VALUES ($1, $2, 'use', -1, 9, 1, $3)",
            uuid7(clock.now()),
            user_id,
            clock.now(),
        )


async def test_usage_is_listed_by_key(conn: Connection, clock: FakeClock) -> None:
    """Events come newest first within [start, end), from just before a key."""
    user_id = await make_account(conn, clock)
    other = await make_account(conn, clock)
    events: list[Event] = []
    for _ in range(6):
        events.insert(0, make_event(user_id, clock.now(), credits=0))
        clock.advance(seconds=1)
    await write(conn, clock, [*events, make_event(other, clock.now(), credits=0)])

    async def listed(
        start: datetime | None = None,
        end: datetime | None = None,
        before: tuple[datetime, UUID] | None = None,
    ) -> list[Event]:
        return await metering.list_usage(
            conn, user_id=user_id, start=start, end=end, before=before, limit=4
        )

    assert await listed() == events[:4]
    assert await listed(before=(events[3].time, events[3].id)) == events[4:]
    assert await listed(start=events[1].time) == events[:2]
    assert await listed(end=events[3].time) == events[4:]
    assert await listed(start=events[3].time, end=events[1].time) == events[2:4]


async def test_one_instant_has_its_order(conn: Connection, clock: FakeClock) -> None:
    """Events of one millisecond are told apart by their ids: no gap, no repeat."""
    user_id = await make_account(conn, clock)
    events = [make_event(user_id, clock.now(), credits=0) for _ in range(5)]
    await write(conn, clock, events)
    listed: list[Event] = []
    before = None
    for _ in events:
        listed += await metering.list_usage(
            conn, user_id=user_id, start=None, end=None, before=before, limit=1
        )
        before = (listed[-1].time, listed[-1].id)
    assert listed == sorted(events, key=lambda event: event.id, reverse=True)


async def test_partitions_are_made_once(conn: Connection, clock: FakeClock) -> None:
    """Partitions cover the months of both instants and all between, over the turn of a year."""
    first, last = clock.now() - timedelta(days=300), clock.now() + timedelta(days=300)
    months = 12 * (last.year - first.year) + last.month - first.month + 1
    there = await conn.fetchval(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'tool_usage'::regclass"
    )
    assert await metering.make_partitions(conn, first, last) == months - there
    assert await metering.make_partitions(conn, first, last) == 0
    assert await metering.make_partitions(conn, last, last + timedelta(days=31)) == 1


async def test_an_event_is_in_the_partition_of_its_month(
    conn: Connection, clock: FakeClock
) -> None:
    """The first and the last millisecond of a month are in its partition."""
    user_id = (await make_user(conn, clock)).id
    month = clock.now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = (month + timedelta(days=31)).replace(day=1) - timedelta(milliseconds=1)
    await write(conn, clock, [make_event(user_id, time, credits=0) for time in (month, end)])
    names = await conn.fetch("SELECT DISTINCT tableoid::regclass::text AS name FROM tool_usage")
    assert [row["name"] for row in names] == [f"tool_usage_{month:%Y_%m}"]


async def test_a_month_without_a_partition_is_no_silent_loss(
    conn: Connection, clock: FakeClock
) -> None:
    """There is no catch-all partition: an event of a month that was not made is an error."""
    user_id = (await make_user(conn, clock)).id
    event = make_event(user_id, datetime(2040, 1, 1, tzinfo=UTC), credits=0)
    with pytest.raises(asyncpg.CheckViolationError):
        await metering.write_events(conn, [event], {})
