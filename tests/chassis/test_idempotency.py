"""chassis.idempotency on a real table of a room."""

import asyncio
import itertools
import time
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from chassis import idempotency
from chassis.callers import PUBLIC, Caller, Kind
from chassis.calls import Call, enter
from chassis.contract import methods_of
from chassis.idempotency import KEPT, Key, key_of
from chassis.postgres import Connection, Database
from chassis.refusals import Conflict, IdempotencyKeyReused
from tests.chassis.probe import CONTRACT, Ask, path
from tests.chassis.waiting import until
from tests.fakes import FakeClock

TABLE = "auth_idempotency_keys"
METHODS = methods_of([CONTRACT])
SECRET = b"s" * 32
CALLERS = 50


@dataclass(frozen=True, slots=True)
class Made:
    """What the effect answers."""

    id: UUID
    number: int


class Work:
    """An effect that leaves a row behind each time it is done."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.numbers = itertools.count()

    async def do(self, conn: Connection) -> Made:
        made = Made(uuid4(), next(self.numbers))
        await conn.execute(
            "INSERT INTO admin_logs (id, actor, action, created_at) VALUES ($1, 't', 'work', $2)",
            made.id,
            self.clock.now(),
        )
        return made

    async def once(self, database: Database, key: Key | None) -> Made:
        async with database.transaction() as conn:
            return await idempotency.once(
                conn, TABLE, key, Made, lambda: self.do(conn), now=self.clock.now()
            )

    async def done(self, database: Database) -> int:
        async with database.connection() as conn:
            return int(await conn.fetchval("SELECT count(*) FROM admin_logs"))


@pytest.fixture
def work(clock: FakeClock) -> Work:
    return Work(clock)


def key_from(text: str, *, key: str = "k-1", method: str = "Open", caller: Caller = PUBLIC) -> Key:
    """Returns the key of a call, as a servicer reads it."""
    enter(Call(METHODS[path(method)], "r", caller, time.monotonic() + 9))
    found = key_of(Ask(text=text, idempotency_key=key), SECRET)
    assert found is not None
    return found


async def test_a_request_without_a_key_is_done_each_time(
    auth_database: Database, work: Work
) -> None:
    """No key, no memory: the effect runs at every call."""
    enter(Call(METHODS[path("Open")], "r", PUBLIC, 0))
    assert key_of(Ask(text="a"), SECRET) is None
    first, second = [await work.once(auth_database, None) for _ in range(2)]
    assert first != second
    assert await work.done(auth_database) == 2


async def test_the_same_request_gets_the_first_answer(auth_database: Database, work: Work) -> None:
    """Same key and same request: the first answer, types and all, and one effect."""
    first = await work.once(auth_database, key_from("a"))
    again = await work.once(auth_database, key_from("a"))
    assert again == first
    assert isinstance(again.id, UUID)
    assert await work.done(auth_database) == 1


async def test_another_request_may_not_use_the_key(auth_database: Database, work: Work) -> None:
    """Same key and other request: IDEMPOTENCY_KEY_REUSED, and nothing is done."""
    await work.once(auth_database, key_from("a"))
    with pytest.raises(IdempotencyKeyReused):
        await work.once(auth_database, key_from("b"))
    assert await work.done(auth_database) == 1


async def test_a_key_belongs_to_its_caller_and_method(auth_database: Database, work: Work) -> None:
    """Two callers, or two methods, may use the same key for different things."""
    users = [Caller(Kind.USER, user_id=uuid4()) for _ in range(2)]
    keys = [
        key_from("a"),
        key_from("b", method="Own", caller=users[0]),
        key_from("c", method="Own", caller=users[1]),
        key_from("d", method="Serve", caller=Caller(Kind.SERVICE, name="usage")),
        key_from("e", key="k-2"),
    ]
    for key in keys:
        await work.once(auth_database, key)
    assert await work.done(auth_database) == len(keys)


async def test_the_stored_fingerprint_tells_nothing() -> None:
    """The fingerprint depends on the service's secret and does not contain the request."""
    enter(Call(METHODS[path("Open")], "r", PUBLIC, 0))
    request = Ask(text="hunter22", idempotency_key="k")
    one, two = key_of(request, SECRET), key_of(request, b"t" * 32)
    assert one is not None
    assert two is not None
    assert one.fingerprint != two.fingerprint
    assert b"hunter22" not in one.fingerprint


async def test_fifty_callers_have_one_effect(auth_database: Database, work: Work) -> None:
    """Fifty callers behind one barrier do the work once and all get the one answer."""
    key = key_from("a")
    barrier = asyncio.Barrier(CALLERS)

    async def call() -> Made:
        await barrier.wait()
        return await work.once(auth_database, key)

    answers = await asyncio.gather(*(call() for _ in range(CALLERS)))
    assert len(set(answers)) == 1
    assert await work.done(auth_database) == 1


async def test_without_the_claim_the_race_is_lost(auth_database: Database, work: Work) -> None:
    """Negative control: a SELECT before the work, in place of the claim, does it many times."""
    key = key_from("a")
    barrier = asyncio.Barrier(CALLERS)

    async def call() -> None:
        await barrier.wait()
        async with auth_database.transaction() as conn:
            if not await conn.fetchval(f"SELECT count(*) FROM {TABLE} WHERE key = $1", key.key):  # noqa: S608
                await work.do(conn)

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    assert await work.done(auth_database) > 1


async def test_a_rollback_leaves_the_key_free(auth_database: Database, work: Work) -> None:
    """A refused effect keeps no key: the next call with it, even another request, does the work."""

    async def refuse() -> Made:
        raise Conflict

    with pytest.raises(Conflict):
        async with auth_database.transaction() as conn:
            await idempotency.once(conn, TABLE, key_from("a"), Made, refuse, now=work.clock.now())
    await work.once(auth_database, key_from("b"))
    assert await work.done(auth_database) == 1


async def test_a_waiting_caller_takes_over_from_a_rolled_back_one(
    auth_database: Database, work: Work
) -> None:
    """A second caller waits for the first one's end and does the work if that one failed."""
    key, claimed, go = key_from("a"), asyncio.Event(), asyncio.Event()

    async def fail() -> Made:
        claimed.set()
        await go.wait()
        raise Conflict

    async def first() -> None:
        async with auth_database.transaction() as conn:
            await idempotency.once(conn, TABLE, key, Made, fail, now=work.clock.now())

    leading = asyncio.create_task(first())
    await claimed.wait()
    following = asyncio.create_task(work.once(auth_database, key))
    async with auth_database.connection() as conn:
        await until(lambda: conn.fetchval("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"))
    go.set()
    with pytest.raises(Conflict):
        await leading
    assert await following == await work.once(auth_database, key)
    assert await work.done(auth_database) == 1


async def test_keys_are_forgotten_after_72_hours(
    auth_database: Database, work: Work, clock: FakeClock
) -> None:
    """A key is kept 72 hours and not deleted before; afterwards it is free again."""
    await work.once(auth_database, key_from("a"))

    async def forget() -> int:
        async with auth_database.transaction() as conn:
            return await idempotency.forget(conn, TABLE, clock.now())

    assert timedelta(hours=72) == KEPT
    clock.advance(hours=72)
    assert await forget() == 0
    clock.advance(seconds=1)
    assert await forget() == 1
    assert await forget() == 0
    await work.once(auth_database, key_from("b"))
    assert await work.done(auth_database) == 2
