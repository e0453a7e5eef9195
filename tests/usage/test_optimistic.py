"""Flushes without locks: what they write rests on accounts that nobody has changed meanwhile."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from asyncpg.connection import LoggedQuery

from chassis.columns import column
from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from services.usage.domain.calendar import Window
from services.usage.domain.metering import Event, Outcome, Result
from services.usage.domain.quotas import EVERY_TOOL, Scope
from services.usage.domain.standing import Role
from services.usage.service.ledger import Act
from services.usage.service.metering import LOCKED_FLUSHES
from services.usage.service.use_cases import UseCases
from services.usage.store import accounts, optimistic
from services.usage.store.metering import event_columns
from tests.factories import ledger_faults, make_account, make_event, make_terms, open_usage
from tests.fakes import FakeClock
from tests.usage.holding import a_commit, a_hold, reserve

ACT = Act("service:test", "because")
Change = Callable[[UseCases, UUID, FakeClock], Awaitable[object]]
Write = partial[Coroutine[Any, Any, bool]]


async def _spend(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    await usage.metering.record([make_event(user_id, clock.now())])


async def _grant(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    await usage.accounts.grant(user_id, make_terms(source_ref="more"))


async def _promise(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    begin = clock.now() + timedelta(days=1)
    await usage.accounts.grant(user_id, make_terms(source_ref="more", effective_at=begin))


async def _void(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    async with usage.room.database.connection() as conn:
        grant_id = await conn.fetchval("SELECT id FROM credit_grants WHERE user_id = $1", user_id)
    await usage.ledger.void_grant(user_id, grant_id, ACT)


async def _adjust(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    await usage.ledger.adjust_credits(user_id, -1, ACT)


async def _overdraw(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    await usage.ledger.set_overdraft_limit(user_id, 10, ACT)


async def _reserve(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    await reserve(usage, user_id, clock)


async def _reserve_and_commit(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    held = a_hold(user_id, clock)
    await usage.reservations.ask(held)
    await usage.reservations.ask(a_commit(held, 1))


async def _limit(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    scope = Scope(user_id=user_id)
    await usage.quotas.set_quota(scope, EVERY_TOOL, Window.DAY, max_calls=1, max_credits=None)


async def _promote(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    await usage.standings.set_role(user_id, Role.PRO, 1)


async def _move(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    await usage.standings.set_time_zone(user_id, "Asia/Tokyo")


async def _erase(usage: UseCases, user_id: UUID, clock: FakeClock) -> None:
    await usage.accounts.erase_user(user_id)


CHANGES = {
    change.__name__: change
    for change in (
        _spend,
        _grant,
        _promise,
        _void,
        _adjust,
        _overdraw,
        _reserve,
        _reserve_and_commit,
        _limit,
        _promote,
        _move,
        _erase,
    )
}


async def decided(
    conn: Connection, user_ids: Sequence[UUID], clock: FakeClock, credits: int
) -> Write:
    """Reads accounts and decides a call of each; returns what writes that."""
    now = clock.now()
    seen = await optimistic.read_books(conn, user_ids, now)
    entry_of = {
        user_id: each.book.spend(credits, now).id for user_id, each in seen.items() if credits
    }
    return partial(
        optimistic.write_use,
        conn,
        list(seen.values()),
        [make_event(user_id, now, credits=credits) for user_id in user_ids],
        entry_of=entry_of,
        now=now,
    )


async def written(owner: Connection) -> tuple[int, int]:
    """Returns how many calls and how many entries that pay for some there are."""
    row = await owner.fetchrow(
        "SELECT (SELECT count(*) FROM tool_usage),"
        " (SELECT count(*) FROM credit_entries WHERE kind = 'use')"
    )
    return row[0], row[1]


@pytest.mark.parametrize("credits", [0, 3])
async def test_an_account_that_nobody_changed_is_written(
    owner: Connection, clock: FakeClock, credits: int
) -> None:
    """Calls that cost nothing are written too, and leave no entry."""
    users = [await make_account(owner, clock, credits=10) for _ in range(3)]
    write = await decided(owner, users, clock, credits)
    assert await write()
    assert await written(owner) == (3, 3 if credits else 0)
    assert await ledger_faults(owner) == []


async def test_hours_are_those_of_utc(owner: Connection, clock: FakeClock) -> None:
    """Whatever zone a session has, be it one whose hours begin at the half."""
    user_id = await make_account(owner, clock, credits=10)
    async with owner.transaction():
        await owner.execute("SET LOCAL timezone = 'Asia/Kolkata'")
        write = await decided(owner, [user_id], clock, credits=3)
        assert await write()
    hour = clock.now().replace(minute=0, second=0, microsecond=0)
    row = await owner.fetchrow("SELECT hour, calls, credits FROM usage_rollups")
    assert tuple(row) == (hour, 1, 3)


def test_events_are_written_in_the_order_of_their_ids(clock: FakeClock) -> None:
    """Two flushes that are sent the same ones, in whatever order, meet at the first."""
    user_id = uuid7(clock.now())
    events = [make_event(user_id, clock.now()) for _ in range(50)]
    entries = [uuid7(clock.now()) for _ in events]
    ids, *_, paid = event_columns(events, entries)
    pairs = sorted(zip(events, entries, strict=True), key=lambda pair: pair[0].id)
    assert ids == column(event.id for event, _ in pairs)
    assert paid == column(entry for _, entry in pairs)
    assert ids != column(event.id for event in events)


@pytest.mark.parametrize("credits", [0, 3])
@pytest.mark.parametrize("name", CHANGES)
async def test_an_account_that_changed_is_not_written(
    usage: UseCases, owner: Connection, clock: FakeClock, name: str, credits: int
) -> None:
    """Whatever it was that changed: neither it nor another account of the flush is written."""
    changed, other = [await make_account(owner, clock, credits=20) for _ in range(2)]
    write = await decided(owner, [changed, other], clock, credits)
    await CHANGES[name](usage, changed, clock)
    before = await written(owner)
    assert not await write()
    assert await written(owner) == before
    assert await ledger_faults(owner) == []


async def test_control_an_account_that_is_read_again_is_written(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Nothing but its xmin keeps a call from an account that got a quota meanwhile."""
    user_id = await make_account(owner, clock, credits=20)
    write = await decided(owner, [user_id], clock, credits=3)
    await _limit(usage, user_id, clock)
    (decided_on,) = write.args[1]
    (fresh,) = (await optimistic.read_books(owner, [user_id], clock.now())).values()
    decided_on.xmin, decided_on.roles = fresh.xmin, fresh.roles
    assert await write()
    assert await written(owner) == (1, 1)


async def test_an_account_that_is_held_is_not_waited_for(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Its lock is somebody else's: false at once, and nothing of the flush is written."""
    held, free = [await make_account(owner, clock, credits=10) for _ in range(2)]
    async with usage.room.database.connection() as conn, owner.transaction():
        write = await decided(conn, [held, free], clock, credits=1)
        await accounts.lock_books(owner, [held], clock.now())
        assert not await write()
    assert await written(owner) == (0, 0)


async def test_a_duplicate_is_one_whatever_the_account_can_pay(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """What was recorded with the last credit is a duplicate, before a new call and after it."""
    user_id = await make_account(owner, clock, credits=1)
    first, more = [make_event(user_id, clock.now()) for _ in range(2)]
    await usage.metering.record([first])
    outcomes = [result.outcome for result in await usage.metering.record([first, more, first])]
    assert outcomes == [Outcome.DUPLICATE, Outcome.NO_CREDITS, Outcome.DUPLICATE]
    await usage.accounts.erase_user(user_id)
    outcomes = [result.outcome for result in await usage.metering.record([first, more])]
    assert outcomes == [Outcome.DUPLICATE, Outcome.ACCOUNT_CLOSED]
    assert await written(owner) == (1, 1)


async def recorded(usage: UseCases, event: Event) -> tuple[Result, list[str]]:
    """Records a call; returns what became of it and the statements of its flush."""
    statements: list[str] = []

    def note(query: LoggedQuery) -> None:
        statements.append(query.query)

    async with usage.room.database.connection() as conn:
        conn.add_query_logger(note)
    (result,) = await usage.metering.record([event])
    async with usage.room.database.connection() as conn:
        conn.remove_query_logger(note)
    assert any("tool_usage" in statement for statement in statements)
    return result, statements


async def locked(usage: UseCases, event: Event) -> bool:
    """Records a call; tells whether its flush was a transaction."""
    _, statements = await recorded(usage, event)
    return any(statement.startswith("BEGIN") for statement in statements)


async def test_after_a_flush_with_locks_some_more_take_them(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """What kept a flush from doing without is seldom over at once; then all is as before."""
    limited, plain = [await make_account(owner, clock, credits=20) for _ in range(2)]
    assert not await locked(usage, make_event(plain, clock.now()))
    await _limit(usage, limited, clock)
    assert await locked(usage, make_event(limited, clock.now()))
    with_locks = [await locked(usage, make_event(plain, clock.now())) for _ in range(6)]
    assert with_locks == [True] * LOCKED_FLUSHES + [False] * (6 - LOCKED_FLUSHES)


@pytest.mark.parametrize("credits", [0, 1])
async def test_an_account_near_a_threshold_is_looked_up_when_it_pays(
    usage_database: Database, owner: Connection, clock: FakeClock, credits: int
) -> None:
    """Calls that cost nothing reach no threshold, and need no locks to know it."""
    user_id = await make_account(owner, clock, credits=10)
    async with open_usage(usage_database, clock) as usage:
        await usage.metering.record([make_event(user_id, clock.now(), credits=7)])
    async with open_usage(usage_database, clock, thresholds=(80, 100)) as usage:
        event = make_event(user_id, clock.now(), credits=credits)
        assert await locked(usage, event) is bool(credits)


async def test_an_account_with_a_quota_takes_locks(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Its calls are counted, with those of other accounts in the same flush."""
    limited, plain = [await make_account(owner, clock, credits=10) for _ in range(2)]
    await _limit(usage, limited, clock)
    calls = [make_event(user_id, clock.now()) for user_id in (limited, plain, limited)]
    outcomes = [result.outcome for result in await usage.metering.record(calls)]
    assert outcomes == [Outcome.ACCEPTED, Outcome.ACCEPTED, Outcome.QUOTA_WINDOW]
    assert await ledger_faults(owner) == []


async def test_an_account_that_is_overdue_takes_locks(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """What has expired is not spent, and its end is written."""
    user_id = await make_account(owner, clock, credits=10)
    end = clock.now() + timedelta(hours=1)
    await usage.accounts.grant(user_id, make_terms(source_ref="short", expires_at=end))
    clock.advance(hours=2)
    (result,) = await usage.metering.record([make_event(user_id, clock.now(), credits=4)])
    assert (result.outcome, result.available) == (Outcome.ACCEPTED, 6)
    assert await ledger_faults(owner) == []


async def test_a_recorded_event_in_a_flush_takes_locks(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Among calls that are new it is a duplicate; one id with another payload is refused."""
    one, other = [await make_account(owner, clock, credits=10) for _ in range(2)]
    known = make_event(one, clock.now())
    await usage.metering.record([known])
    calls = [make_event(one, clock.now()), known, known._replace(user_id=other)]
    outcomes = [result.outcome for result in await usage.metering.record(calls)]
    assert outcomes == [Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.EVENT_ID_REUSED]
    assert await ledger_faults(owner) == []
