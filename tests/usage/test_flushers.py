"""Two flushers over the same accounts, as two replicas have them."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from itertools import compress
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from chassis.postgres import Connection, open_database
from services.usage.domain.book import Book
from services.usage.domain.metering import Event, Outcome, Result
from services.usage.service.metering import MeteringService
from services.usage.service.use_cases import UseCases
from services.usage.store import accounts
from tests.factories import ledger_faults, make_account, make_event, open_usage
from tests.fakes import FakeClock

USERS, BATCH, AT_ONCE = 100, 500, 20


class Deadlocks:
    """Counts the flushes that PostgreSQL ended because of a deadlock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        flush = MeteringService._flush_locked

        async def counted(
            metering: MeteringService, events: Sequence[Event], *, wait: bool
        ) -> Sequence[Result]:
            try:
                return await flush(metering, events, wait=wait)
            except Exception as error:
                self.count += isinstance(error.__cause__, asyncpg.DeadlockDetectedError)
                raise

        monkeypatch.setattr(MeteringService, "_flush_locked", counted)


async def two_rooms(stack: AsyncExitStack, database_url: str, owner: Connection) -> list[UseCases]:
    """Two rooms, each with a pool of its own; a deadlock is found before a lock's timeout."""
    name = database_url.split("?", maxsplit=1)[0].rpartition("/")[2]
    await owner.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '10ms'")
    rooms = []
    for _ in range(2):
        database = await stack.enter_async_context(
            open_database(database_url, role="finity_usage", application="test")
        )
        rooms.append(await stack.enter_async_context(open_usage(database, FakeClock())))
    return rooms


async def send(
    room: UseCases, users: Sequence[UUID], batches: int, outcomes: Counter[Outcome]
) -> None:
    """Records batches of one event a user in turn, some of them at a time."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with turn:
            at = FakeClock().now()
            events = [make_event(users[place % len(users)], at) for place in range(BATCH)]
            while events:
                results = await room.metering.record(events)
                # On a busy machine the other one may hold an account for too long.
                busy = [result.outcome is Outcome.ACCOUNT_BUSY for result in results]
                events = list(compress(events, busy))
                outcomes.update(r.outcome for r in results if r.outcome is not Outcome.ACCOUNT_BUSY)

    await asyncio.gather(*(one() for _ in range(batches)))


@pytest.mark.parametrize("events", [20_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
async def test_two_flushers_meet_without_deadlock(
    database_url: str,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    events: int,
) -> None:
    """Events of the same users in opposite orders: no deadlock, none refused, none lost."""
    users = [await make_account(owner, clock, credits=events) for _ in range(USERS)]
    deadlocks, outcomes = Deadlocks(monkeypatch), Counter[Outcome]()
    batches = events // BATCH // 2
    async with AsyncExitStack() as stack:
        one, other = await two_rooms(stack, database_url, owner)
        await asyncio.gather(
            send(one, users, batches, outcomes), send(other, users[::-1], batches, outcomes)
        )
    assert deadlocks.count == 0
    assert outcomes == {Outcome.ACCEPTED: events}
    assert await owner.fetchval("SELECT count(*) FROM tool_usage") == events
    each = await owner.fetchval("SELECT array_agg(DISTINCT used) FROM credit_accounts")
    assert each == [events // USERS]
    assert await ledger_faults(owner) == []


async def test_control_unsorted_locks_deadlock(
    database_url: str, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the order the same load deadlocks; what was accepted all the same adds up."""
    lock_books = accounts.lock_books
    dice = random.Random(1)  # noqa: S311

    async def unsorted(conn: Any, user_ids: Iterable[UUID], now: datetime) -> Mapping[UUID, Book]:
        users = sorted(user_ids)
        dice.shuffle(users)
        for user_id in users:
            await conn.execute(
                "SELECT 1 FROM credit_accounts WHERE user_id = $1 FOR NO KEY UPDATE", user_id
            )
        return await lock_books(conn, users, now)

    monkeypatch.setattr(accounts, "lock_books", unsorted)
    users = [await make_account(owner, clock, credits=20_000) for _ in range(USERS)]
    deadlocks, outcomes = Deadlocks(monkeypatch), Counter[Outcome]()
    async with AsyncExitStack() as stack:
        one, other = await two_rooms(stack, database_url, owner)
        for _ in range(20):  # On a busy machine it may take a while until two meet.
            sending = (send(room, users, 10, outcomes) for room in (one, other))
            await asyncio.gather(*sending, return_exceptions=True)
            if deadlocks.count:
                break
    assert deadlocks.count > 0
    used = await owner.fetchval("SELECT sum(used) FROM credit_accounts")
    assert used >= outcomes[Outcome.ACCEPTED]
    assert await ledger_faults(owner) == []
