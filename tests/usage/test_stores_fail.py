"""Usage under load while PostgreSQL is frozen, and while Redis is emptied and started again."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from grpc import aio
from redis.asyncio import Redis

from chassis import migrate
from chassis.postgres import Connection
from suite.ports import free_port
from suite.postgres import EmbeddedPostgres
from suite.valkey import EmbeddedValkey
from tests.conftest import ROOMS, in_memory
from tests.factories import Process, connect_owner, make_account, start_process
from tests.fakes import FakeClock
from tests.running import SERVICE_KEY, bearer
from tests.usage.load import Load, finish

# What waits in the queue is bounded; what a process takes besides does not depend on the load.
QUEUE, FLUSH = 2000, 1000
GROWTH = 100 * 1024 * 1024
# Half of them with batches: more than fit into queue and flush.
WORKERS, BATCH = 100, 100
RETRY_SECONDS = 0.1


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's own user can reach."""
    with tempfile.TemporaryDirectory(
        prefix="finity-test-", dir=in_memory(), ignore_cleanup_errors=True
    ) as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def postgres(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server of the test's own: it may be frozen."""
    server = EmbeddedPostgres(folder, durable=False)
    server.start()
    try:
        yield server
    finally:
        server.remove()


@contextlib.asynccontextmanager
async def running(database_url: str, redis_url: str) -> AsyncIterator[Process]:
    variables = {
        "FINITY_LOG_LEVEL": "error",
        "FINITY_QUEUE_EVENTS": str(QUEUE),
        "FINITY_FLUSH_EVENTS": str(FLUSH),
    }
    process = await start_process("usage", database_url, redis_url, variables, port=free_port())
    try:
        yield process
    finally:
        await process.kill()


@contextlib.asynccontextmanager
async def stub_of(process: Process) -> AsyncIterator[usage_pb2_grpc.UsageServiceStub]:
    async with aio.insecure_channel(f"127.0.0.1:{process.port}") as channel:
        await asyncio.wait_for(channel.channel_ready(), 60)
        yield usage_pb2_grpc.UsageServiceStub(channel)


@contextlib.asynccontextmanager
async def loaded(
    load: Load, usage: usage_pb2_grpc.UsageServiceStub, *, streams: int = 0
) -> AsyncIterator[None]:
    """Keeps workers and streams sending; ends when each has its last answer."""
    over = asyncio.Event()

    async def worker(count: int) -> None:
        while not over.is_set():
            try:
                await load.send(usage, count)
            except aio.AioRpcError:
                await asyncio.sleep(RETRY_SECONDS)

    async def streamer() -> None:
        while not over.is_set():
            await load.ingest(usage, BATCH)
            await asyncio.sleep(RETRY_SECONDS)

    sizes = itertools.islice(itertools.cycle((BATCH, 1)), WORKERS)
    workers = [asyncio.create_task(worker(size)) for size in sizes]
    streamers = [asyncio.create_task(streamer()) for _ in range(streams)]
    try:
        yield
        over.set()
        await asyncio.wait_for(asyncio.gather(*workers), 60)
    finally:
        for task in (*workers, *streamers):
            task.cancel()
        await asyncio.gather(*workers, *streamers, return_exceptions=True)


def family(pid: int) -> list[int]:
    """Returns a process and its children; each of PostgreSQL's is a group of its own."""
    found = [pid]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return found


async def at_rest(load: Load) -> int:
    """Returns how many were acknowledged, once none has been for half a second."""
    count = -1
    async with asyncio.timeout(60):
        while count < len(load.acknowledged):
            count = len(load.acknowledged)
            await asyncio.sleep(0.5)
    return count


def resident_bytes(process: Process) -> int:
    pages = Path(f"/proc/{process.child.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc, which is Linux'")
@pytest.mark.parametrize("seconds", [2, pytest.param(10, marks=pytest.mark.soak)])
async def test_a_frozen_postgresql_costs_nothing_that_was_acknowledged(
    postgres: EmbeddedPostgres, redis_url: str, seconds: float
) -> None:
    """Calls past the queue are OVERLOADED with a delay, memory is bounded, all is recorded once."""
    await migrate.apply(postgres.dsn, ROOMS, lambda _: None)
    async with connect_owner(postgres.dsn) as owner:
        users = [await make_account(owner, FakeClock(), credits=10**9) for _ in range(20)]
    load = Load(users, random.Random(3))  # noqa: S311
    async with running(postgres.dsn, redis_url) as process, stub_of(process) as usage:
        async with loaded(load, usage, streams=2):
            await asyncio.wait_for(load.fresh.wait(), 60)
            await asyncio.sleep(1)
            before = resident_bytes(process)
            assert postgres.child
            frozen = [postgres.child.pid]
            os.kill(frozen[0], signal.SIGSTOP)
            try:
                # From now on it starts no other child.
                frozen = family(frozen[0])
                for pid in frozen:
                    os.kill(pid, signal.SIGSTOP)
                acknowledged = await at_rest(load)
                await asyncio.sleep(seconds)
                assert len(load.acknowledged) == acknowledged
                grown = resident_bytes(process) - before
            finally:
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)
            load.fresh.clear()
            await asyncio.wait_for(load.fresh.wait(), 60)
        assert load.refusals["RESOURCE_EXHAUSTED OVERLOADED"] > 0
        assert set(load.refusals) <= {
            "RESOURCE_EXHAUSTED OVERLOADED",
            "UNAVAILABLE DATABASE_UNAVAILABLE",
            "ABORTED CONFLICT",
            # grpcio's own, when a stream ends while it is written to.
            "INTERNAL",
        }
        assert grown < GROWTH
        async with connect_owner(postgres.dsn) as owner:
            await finish(owner, load, usage, BATCH)


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.soak)])
async def test_redis_is_emptied_and_started_again_under_load(
    database_url: str, folder: Path, owner: Connection, rounds: int
) -> None:
    """Nobody is refused for it, and every balance is what PostgreSQL says."""
    users = [await make_account(owner, FakeClock(), credits=10**6) for _ in range(20)]
    load = Load(users, random.Random(4))  # noqa: S311
    valkey = EmbeddedValkey(folder)
    valkey.start()
    try:
        async with running(database_url, valkey.url) as process, stub_of(process) as usage:
            async with loaded(load, usage):
                for _ in range(rounds):
                    async with Redis.from_url(valkey.url) as redis:
                        await redis.flushall()
                    await asyncio.sleep(0.3)
                    await asyncio.to_thread(valkey.stop)
                    await asyncio.sleep(0.3)
                    await asyncio.to_thread(valkey.start)
            assert set(load.refusals) <= {"RESOURCE_EXHAUSTED OVERLOADED"}
            await finish(owner, load, usage, BATCH)
            said = {user_id: await available(usage, user_id) for user_id in map(str, users)}
            rows = await owner.fetch("SELECT user_id, granted - used AS left FROM credit_accounts")
            assert said == {str(row["user_id"]): row["left"] for row in rows}
    finally:
        valkey.stop()


async def available(usage: usage_pb2_grpc.UsageServiceStub, user_id: str) -> int:
    request = usage_pb2.GetBalanceRequest(user_id=user_id)
    answer = await usage.GetBalance(request, metadata=bearer(SERVICE_KEY), timeout=60)
    return answer.balance.available
