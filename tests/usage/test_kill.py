"""The usage process, killed under load: what was acknowledged stays, once."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from grpc import aio

from chassis.clock import SystemClock
from chassis.postgres import Connection
from tests.factories import (
    Process,
    ledger_faults,
    make_account,
    make_event,
    start_process,
    to_wire,
)
from tests.fakes import FakeClock
from tests.running import SERVICE_KEY, bearer, free_port

ROUNDS = 20
WORKERS = 8
BATCH = 20
LONGEST_SECONDS = 0.4


@dataclass(slots=True)
class Load:
    """Callers that send every event until it is acknowledged, whatever process answers."""

    users: Sequence[UUID]
    dice: random.Random
    sent: int = 0
    acknowledged: set[str] = field(default_factory=set)
    unsure: list[usage_pb2.UsageEvent] = field(default_factory=list)
    fresh: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first acknowledgement of a round."""

    def next(self, count: int) -> list[usage_pb2.UsageEvent]:
        """Returns events nobody acknowledged yet, new ones when there are too few."""
        events = [self.unsure.pop() for _ in range(min(count, len(self.unsure)))]
        now = SystemClock().now()
        while len(events) < count:
            user_id = self.dice.choice(self.users)
            events.append(to_wire(make_event(user_id, now, credits=self.dice.randrange(4))))
            self.sent += 1
        return events

    async def send(self, usage: usage_pb2_grpc.UsageServiceStub, count: int) -> None:
        """Sends events in one call; they stay unsure unless it is answered."""
        events = self.next(count)
        service = bearer(SERVICE_KEY)
        try:
            if count == 1:
                request = usage_pb2.RecordUsageRequest(event=events[0])
                await usage.RecordUsage(request, metadata=service, timeout=20)
            else:
                batch = usage_pb2.RecordUsageBatchRequest(events=events)
                answer = await usage.RecordUsageBatch(batch, metadata=service, timeout=20)
                assert not [r.reason for r in answer.results if r.reason]
        except aio.AioRpcError:
            self.unsure += events
            raise
        self.acknowledged.update(event.event_id for event in events)
        self.fresh.set()

    async def work(self, usage: usage_pb2_grpc.UsageServiceStub, count: int) -> None:
        """Sends until a call fails."""
        with contextlib.suppress(aio.AioRpcError):
            while True:
                await self.send(usage, count)


async def kept(owner: Connection, load: Load) -> bool:
    """Tells whether each acknowledged event is recorded exactly once and the ledger adds up."""
    found = await owner.fetchval(
        "SELECT count(*) FROM tool_usage WHERE id = ANY($1::uuid[])", list(load.acknowledged)
    )
    return bool(found == len(load.acknowledged) and not await ledger_faults(owner))


async def test_what_was_acknowledged_survives_kill_9(
    database_url: str, redis_url: str, owner: Connection
) -> None:
    """20 times killed at random moments: no acknowledged event is lost, none counts twice."""
    dice = random.Random(20)  # noqa: S311
    users = [await make_account(owner, FakeClock(), credits=10**9) for _ in range(5)]
    load = Load(users, dice)

    async def start() -> Process:
        return await start_process(
            "usage", database_url, redis_url, {"FINITY_LOG_LEVEL": "error"}, port=free_port()
        )

    upcoming = await start()
    try:
        for _ in range(ROUNDS):
            process = upcoming
            async with aio.insecure_channel(f"127.0.0.1:{process.port}") as channel:
                usage = usage_pb2_grpc.UsageServiceStub(channel)
                await asyncio.wait_for(channel.channel_ready(), 30)
                sizes = itertools.islice(itertools.cycle((1, 1, 1, BATCH)), WORKERS)
                load.fresh.clear()
                workers = [asyncio.create_task(load.work(usage, size)) for size in sizes]
                # The next one gets ready while this one works.
                upcoming = await start()
                await asyncio.wait_for(load.fresh.wait(), 30)
                await asyncio.sleep(dice.uniform(0, LONGEST_SECONDS))
                await process.kill()
                await asyncio.gather(*workers)
            assert await kept(owner, load)

        async with aio.insecure_channel(f"127.0.0.1:{upcoming.port}") as channel:
            usage = usage_pb2_grpc.UsageServiceStub(channel)
            await asyncio.wait_for(channel.channel_ready(), 30)
            while load.unsure:
                await load.send(usage, 1)
    finally:
        await upcoming.kill()
    assert await kept(owner, load)
    assert await owner.fetchval("SELECT count(*) FROM tool_usage") == load.sent
    assert len(load.acknowledged) == load.sent
