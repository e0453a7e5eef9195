"""WatchBalance: the balance, then every change, in order, with Redis and without."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from finity.usage.v1 import report_pb2, report_pb2_grpc, usage_pb2
from grpc import StatusCode, aio
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from chassis.background import background
from chassis.callers import Caller, Kind
from chassis.postgres import Connection, Database, open_database
from services.usage.domain.accounts import Balance
from services.usage.errors import TooManyWatchers
from services.usage.service import watching
from services.usage.service.use_cases import UseCases
from services.usage.service.watching import BalanceHub, Watcher
from suite.ports import free_port
from tests.chassis.waiting import until
from tests.factories import (
    SERVICE,
    at_once,
    ledger_faults,
    make_account,
    make_event,
    make_terms,
    open_usage,
    reason_of,
    start_process,
)
from tests.fakes import FakeClock
from tests.running import SERVICE_KEY, House, bearer, refusal_of

NEVER = 3600.0
Watched = AsyncGenerator[Balance, None]


@contextlib.asynccontextmanager
async def open_hub(
    database: Database, clock: FakeClock, redis: Redis | None = None
) -> AsyncIterator[BalanceHub]:
    """One process's hub with its jobs running."""
    hub = BalanceHub(database, clock, redis)
    async with background(*hub.jobs()):
        yield hub


@contextlib.asynccontextmanager
async def announcing(
    database: Database, clock: FakeClock, hub: BalanceHub
) -> AsyncIterator[UseCases]:
    """The room of the process whose hub this is."""
    async with open_usage(database, clock) as usage:
        room = replace(usage.room, announce=hub.announce)
        usage.accounts._room = usage.metering._room = room
        yield usage


async def told(watched: Watched, seconds: float = 25) -> Balance:
    """Returns the next balance; the wait is shorter than BEAT_SECONDS, which would repeat one."""
    return await asyncio.wait_for(anext(watched), seconds)


async def spend(usage: UseCases, user_id: UUID, clock: FakeClock, amount: int = 1) -> None:
    await usage.metering.record([make_event(user_id, clock.now(), credits=amount)])


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read but what somebody announced."""
    monkeypatch.setattr(watching, "REREAD_SECONDS", NEVER)
    monkeypatch.setattr(watching, "REREAD_ALONE_SECONDS", NEVER)
    # What a busy machine announces late nobody would make good.
    monkeypatch.setattr(watching, "PUBLISH_SECONDS", 20.0)


@pytest.mark.usefixtures("quiet")
async def test_each_change_is_told_at_once(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """The balance as it is, then after a grant, a use and the end of the account."""
    user_id = await make_account(owner, clock, credits=10)
    async with (
        open_hub(usage_database, clock) as hub,
        announcing(usage_database, clock, hub) as usage,
    ):
        watched = hub.watch(user_id, SERVICE)
        assert (await told(watched)).available == 10
        await usage.accounts.grant(user_id, make_terms(source_ref="more", amount=5))
        assert (await told(watched)).available == 15
        await spend(usage, user_id, clock, 4)
        balance = await told(watched)
        assert (balance.available, balance.version) == (11, 3)
        await usage.accounts.erase_user(user_id)
        assert (await told(watched)).closed_at is not None
        await watched.aclose()
    assert await ledger_faults(owner) == []


@pytest.mark.usefixtures("quiet")
async def test_changes_that_nobody_read_are_one(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """A slow reader gets the last of many balances, and no older one."""
    user_id = await make_account(owner, clock, credits=100)
    async with (
        open_hub(usage_database, clock) as hub,
        announcing(usage_database, clock, hub) as usage,
    ):
        watched = hub.watch(user_id, SERVICE)
        first = await told(watched)
        for _ in range(20):
            await spend(usage, user_id, clock)
        (watcher,) = hub._watchers[user_id]
        await until(lambda: watcher.balance is not None and watcher.balance.version == 21)
        last = await told(watched)
        assert (first.version, last.version, last.available) == (1, 21, 80)
        with pytest.raises(TimeoutError):
            await told(watched, 0.1)


@given(versions=st.lists(st.integers(1, 5), min_size=1))
def test_no_older_balance_replaces_a_newer(versions: list[int]) -> None:
    """However balances come in, what a watcher holds only ever gets newer."""
    watcher, seen = Watcher(), 0
    for version in versions:
        watcher.give(Balance(UUID(int=1), version, 0, 0, 0, version))
        assert watcher.balance is not None
        assert watcher.balance.version == max(seen, version)
        seen = watcher.balance.version


async def test_versions_never_fall_while_many_write(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """50 callers change an account that 20 watch: each sees it rise and ends with the last."""
    user_id = await make_account(owner, clock, credits=1000)
    async with (
        open_hub(usage_database, clock) as hub,
        announcing(usage_database, clock, hub) as usage,
    ):

        async def follow() -> list[int]:
            seen = []
            async with contextlib.aclosing(hub.watch(user_id, SERVICE)) as watched:
                async for balance in watched:
                    seen.append(balance.version)
                    if balance.available == 1000 - 50 + 50 * 3:
                        return seen
            return seen

        followers = [asyncio.create_task(follow()) for _ in range(20)]

        async def change(n: int) -> None:
            await spend(usage, user_id, clock)
            await usage.accounts.grant(user_id, make_terms(source_ref=f"{n}", amount=3))

        await at_once(50, change)
        async with asyncio.timeout(60):
            for seen in await asyncio.gather(*followers):
                assert seen == sorted(set(seen))
        assert hub._watchers == {}
        assert hub._callers.total() == 0
    assert await ledger_faults(owner) == []


@pytest.mark.usefixtures("quiet")
async def test_another_process_is_told_over_redis(
    usage_database: Database, owner: Connection, clock: FakeClock, redis_url: str
) -> None:
    """A change in one process reaches the watchers of another, in order, many as few."""
    users = [await make_account(owner, clock, credits=100) for _ in range(30)]
    async with (
        Redis.from_url(redis_url) as one,
        Redis.from_url(redis_url) as two,
        open_hub(usage_database, clock, one) as writer,
        open_hub(usage_database, clock, two) as reader,
        announcing(usage_database, clock, writer) as usage,
    ):
        watched = [reader.watch(user_id, SERVICE) for user_id in users]
        assert {(await told(each)).available for each in watched} == {100}
        await until(lambda: reader._hears)
        await usage.metering.record([make_event(user_id, clock.now()) for user_id in users])
        assert {(await told(each)).available for each in watched} == {99}


async def test_a_process_listens_while_somebody_watches(
    usage_database: Database,
    owner: Connection,
    clock: FakeClock,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last watcher's end stops it at the next message; the next watcher starts it again."""
    monkeypatch.setattr(watching, "PUBLISH_SECONDS", 20.0)
    user_id = await make_account(owner, clock, credits=100)
    async with (
        Redis.from_url(redis_url) as one,
        Redis.from_url(redis_url) as two,
        open_hub(usage_database, clock, one) as writer,
        open_hub(usage_database, clock, two) as reader,
        announcing(usage_database, clock, writer) as usage,
    ):
        for _ in range(3):
            assert not reader._hears
            watched = reader.watch(user_id, SERVICE)
            await told(watched)
            await until(lambda: reader._hears)
            await spend(usage, user_id, clock)
            await told(watched)
            await watched.aclose()
            await spend(usage, user_id, clock)
            await until(lambda: not reader._hears)


@pytest.mark.usefixtures("quiet")
async def test_without_the_announcement_nothing_is_told(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Control: it is the announcement that the tests above wait for."""
    user_id = await make_account(owner, clock, credits=10)
    async with (
        open_hub(usage_database, clock) as hub,
        open_usage(usage_database, clock) as usage,
    ):
        watched = hub.watch(user_id, SERVICE)
        await told(watched)
        await spend(usage, user_id, clock)
        with pytest.raises(TimeoutError):
            await told(watched, 0.3)


@pytest.mark.parametrize("down", [True, False])
async def test_without_redis_balances_are_read_every_second(
    usage_database: Database,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    down: bool,
) -> None:
    """Where no message comes a change of another process is read within the second."""
    monkeypatch.setattr(watching, "REREAD_SECONDS", NEVER)
    monkeypatch.setattr(watching, "REREAD_ALONE_SECONDS", 0.1)
    user_id = await make_account(owner, clock, credits=10)
    async with contextlib.AsyncExitStack() as stack:
        redis = None
        if down:
            redis = Redis.from_url(f"redis://127.0.0.1:{free_port()}", socket_connect_timeout=1)
            stack.push_async_callback(redis.aclose)
        hub = BalanceHub(usage_database, clock, redis)
        await stack.enter_async_context(background(*hub.jobs()))
        usage = await stack.enter_async_context(open_usage(usage_database, clock))
        watched = hub.watch(user_id, SERVICE)
        assert (await told(watched)).available == 10
        await spend(usage, user_id, clock)
        assert (await told(watched)).available == 9
        # What is announced here is told at once all the same.
        monkeypatch.setattr(watching, "REREAD_ALONE_SECONDS", NEVER)
        await spend(usage, user_id, clock)
        hub.announce([user_id])
        assert (await told(watched)).available == 8


async def test_what_was_said_while_redis_was_away_is_read(
    usage_database: Database, owner: Connection, clock: FakeClock, redis_url: str
) -> None:
    """A process that lost its connection reads everything watched once it hears again."""
    user_id = await make_account(owner, clock, credits=10)
    async with (
        Redis.from_url(redis_url) as redis,
        open_hub(usage_database, clock, redis) as hub,
        open_usage(usage_database, clock) as usage,
    ):
        watched = hub.watch(user_id, SERVICE)
        await told(watched)
        await until(lambda: hub._hears)
        await redis.client_kill_filter(_type="pubsub")
        await spend(usage, user_id, clock)
        assert (await told(watched)).available == 9


async def test_what_expires_by_itself_is_told(
    usage_database: Database,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A grant that ends is written and told by whoever watches, without any call."""
    monkeypatch.setattr(watching, "REREAD_ALONE_SECONDS", 0.05)
    user_id = await make_account(owner, clock, credits=10)
    async with (
        open_hub(usage_database, clock) as hub,
        announcing(usage_database, clock, hub) as usage,
    ):
        until = clock.now().replace(year=clock.now().year + 1)
        await usage.accounts.grant(user_id, make_terms(source_ref="gift", expires_at=until))
        watched = hub.watch(user_id, SERVICE)
        assert (await told(watched)).available == 110
        clock.advance(days=366)
        assert (await told(watched)).available == 10
    assert await ledger_faults(owner) == []


async def test_a_balance_that_rests_is_repeated(
    usage_database: Database,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing happens, and the same balance comes again."""
    monkeypatch.setattr(watching, "BEAT_SECONDS", 0.05)
    user_id = await make_account(owner, clock, credits=10)
    async with open_hub(usage_database, clock) as hub:
        watched = hub.watch(user_id, SERVICE)
        assert await told(watched) == await told(watched)


async def test_watchers_are_bounded(
    usage_database: Database,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A caller past its bound, or the process's, is refused; one that leaves makes room."""
    user_id = await make_account(owner, clock)
    ada, bob = [Caller(Kind.USER, user_id=uuid4()) for _ in range(2)]
    monkeypatch.setattr(watching, "MOST_WATCHERS", 12)
    async with open_hub(usage_database, clock) as hub:
        watched = [hub.watch(user_id, ada) for _ in range(10)]
        for each in watched:
            await told(each)
        with pytest.raises(TooManyWatchers):
            await told(hub.watch(user_id, ada))
        others = [hub.watch(user_id, bob) for _ in range(2)]
        for each in others:
            await told(each)
        assert await reason_of(told(hub.watch(user_id, bob))) == "TOO_MANY_WATCHERS"
        await watched[0].aclose()
        await told(hub.watch(user_id, ada))


async def test_a_database_that_is_gone_refuses_who_is_new(
    database_url: str, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has a balance keeps waiting and is told later; who has none is refused."""
    monkeypatch.setattr(watching, "PAUSE_SECONDS", 0.05)
    user_id = await make_account(owner, clock, credits=10)
    async with (
        open_database(database_url, role="finity_usage", application="test") as database,
        open_hub(database, clock) as hub,
    ):
        old = hub.watch(user_id, SERVICE)
        await told(old)
        pool: Any = database._pool
        limit, database._acquire_seconds = database._acquire_seconds, 0.01
        held = [await pool.acquire() for _ in range(pool.get_max_size())]
        new = hub.watch(user_id, SERVICE)
        assert await reason_of(told(new)) == "DATABASE_UNAVAILABLE"
        for connection in held:
            await pool.release(connection)
        database._acquire_seconds = limit
        await owner.execute("UPDATE credit_accounts SET overdraft_limit = 3")
        hub.announce([user_id])
        assert (await told(old)).overdraft_limit == 3


@pytest.mark.usefixtures("quiet")
async def test_every_commit_is_told(
    usage_database: Database, owner: Connection, clock: FakeClock, redis_url: str
) -> None:
    """Each of 200 writes, one after the other, reaches the watcher, and none of them by a poll."""
    assert watching.GATHER_SECONDS <= 0.005
    user_id = await make_account(owner, clock, credits=1000)
    async with (
        Redis.from_url(redis_url) as redis,
        open_hub(usage_database, clock, redis) as hub,
        announcing(usage_database, clock, hub) as usage,
    ):
        watched = hub.watch(user_id, SERVICE)
        await told(watched)
        for spent in range(1, 201):
            await spend(usage, user_id, clock)
            assert (await told(watched)).available == 1000 - spent


async def test_a_user_watches_over_the_wire(house: House) -> None:
    """Its own balance and nobody else's; a change comes while the stream is open."""
    person, other = await house.person(credits=10), await house.person()
    stub = report_pb2_grpc.ReportServiceStub(house.usage_channel)
    stream = stub.WatchBalance(report_pb2.WatchBalanceRequest(), metadata=person.metadata)
    balances = aiter(stream)
    assert (await anext(balances)).balance.available == 10
    grant = usage_pb2.GrantCreditsRequest(
        user_id=person.user_id, amount=5, source="test", source_ref="more"
    )
    await house.usage.GrantCredits(grant, metadata=house.service)
    balance = (await anext(balances)).balance
    assert (balance.available, balance.user_id) == (15, person.user_id)
    stream.cancel()
    denied = stub.WatchBalance(
        report_pb2.WatchBalanceRequest(user_id=other.user_id), metadata=person.metadata
    )
    with pytest.raises(aio.AioRpcError) as refused:
        await denied.read()
    assert refusal_of(refused.value) == (StatusCode.PERMISSION_DENIED, "SUBJECT_DENIED")
    nobody = stub.WatchBalance(
        report_pb2.WatchBalanceRequest(user_id=str(uuid4())), metadata=house.service
    )
    with pytest.raises(aio.AioRpcError) as refused:
        await nobody.read()
    assert refusal_of(refused.value) == (StatusCode.FAILED_PRECONDITION, "ACCOUNT_NOT_OPEN")


async def test_who_comes_back_misses_nothing(house: House) -> None:
    """What changed between two streams is in the first message of the second, however often."""
    person = await house.person(credits=10)
    stub = report_pb2_grpc.ReportServiceStub(house.usage_channel)
    version = 0
    for number in range(15):
        stream = stub.WatchBalance(report_pb2.WatchBalanceRequest(), metadata=person.metadata)
        balance = (await anext(aiter(stream))).balance
        assert (balance.available, balance.version) == (10 + number, 1 + number)
        assert balance.version > version
        version = balance.version
        stream.cancel()
        grant = usage_pb2.GrantCreditsRequest(
            user_id=person.user_id, amount=1, source="test", source_ref=f"{number}"
        )
        await house.usage.GrantCredits(grant, metadata=house.service)


async def test_a_stopping_service_does_not_wait_for_its_watchers(
    database_url: str, redis_url: str, owner: Connection, clock: FakeClock
) -> None:
    """SIGTERM ends an open stream with OK, long before the drain would be over."""
    user_id, port = await make_account(owner, clock), free_port()
    process = await start_process(
        "usage", database_url, redis_url, {"FINITY_DRAIN_SECONDS": "60"}, port=port
    )
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = report_pb2_grpc.ReportServiceStub(channel).WatchBalance(
                report_pb2.WatchBalanceRequest(user_id=str(user_id)),
                metadata=bearer(SERVICE_KEY),
                wait_for_ready=True,
            )
            await asyncio.wait_for(stream.read(), 60)
            process.child.terminate()
            assert await asyncio.wait_for(stream.read(), 30) is aio.EOF
            assert await stream.code() is StatusCode.OK
        code, _ = await asyncio.wait_for(process.finish(), 30)
        assert code == 0
    finally:
        await process.kill()


async def test_a_process_that_stops_ends_its_streams(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """A stream ends without a refusal, so that its reader looks for another process."""
    user_id = await make_account(owner, clock)
    async with open_hub(usage_database, clock) as hub:
        watched = hub.watch(user_id, SERVICE)
        await told(watched)
        hub.close()
        with pytest.raises(StopAsyncIteration):
            await told(watched)
