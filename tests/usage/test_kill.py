"""The usage process, killed under load: what was acknowledged stays, once."""

import asyncio
import itertools
import random

import pytest
from finity.usage.v1 import usage_pb2_grpc
from grpc import aio

from chassis.postgres import Connection
from suite.ports import free_port
from tests.factories import Process, make_account, start_process
from tests.fakes import FakeClock
from tests.usage.load import Load, finish, kept

WORKERS = 8
STREAMS = 2
BATCH = 20
LONGEST_SECONDS = 0.4


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.soak)])
async def test_what_was_acknowledged_survives_kill_9(
    database_url: str, redis_url: str, owner: Connection, rounds: int
) -> None:
    """Killed at random moments: each acknowledged event, of a call or stream, counts once."""
    dice = random.Random(20)  # noqa: S311
    users = [await make_account(owner, FakeClock(), credits=10**9) for _ in range(5)]
    load = Load(users, dice)

    async def start() -> Process:
        return await start_process(
            "usage", database_url, redis_url, {"FINITY_LOG_LEVEL": "error"}, port=free_port()
        )

    upcoming = await start()
    try:
        for _ in range(rounds):
            process = upcoming
            async with aio.insecure_channel(f"127.0.0.1:{process.port}") as channel:
                usage = usage_pb2_grpc.UsageServiceStub(channel)
                await asyncio.wait_for(channel.channel_ready(), 30)
                sizes = itertools.islice(itertools.cycle((1, 1, 1, BATCH)), WORKERS)
                load.fresh.clear()
                workers = [asyncio.create_task(load.work(usage, size)) for size in sizes]
                workers += [asyncio.create_task(load.ingest(usage, BATCH)) for _ in range(STREAMS)]
                # The next one gets ready while this one works.
                upcoming = await start()
                await asyncio.wait_for(load.fresh.wait(), 30)
                await asyncio.sleep(dice.uniform(0, LONGEST_SECONDS))
                await process.kill()
                await asyncio.gather(*workers)
            assert await kept(owner, load)

        async with aio.insecure_channel(f"127.0.0.1:{upcoming.port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
            await finish(owner, load, usage_pb2_grpc.UsageServiceStub(channel))
    finally:
        await upcoming.kill()
