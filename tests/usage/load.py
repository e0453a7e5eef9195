"""Callers of usage that send every event until it is acknowledged, whatever happens between."""

import asyncio
import contextlib
import itertools
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from google.rpc import error_details_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status

from chassis.clock import SystemClock
from chassis.postgres import Connection
from tests.factories import ledger_faults, make_event, to_wire
from tests.running import SERVICE_KEY, bearer, refusal_of

UNACKNOWLEDGED = 3
Events = list[usage_pb2.UsageEvent]


@dataclass(slots=True)
class Load:
    """What was sent, and what was acknowledged of it."""

    users: Sequence[UUID]
    dice: random.Random
    sent: int = 0
    credits: int = 0
    """Of all events sent."""
    acknowledged: set[str] = field(default_factory=set)
    unsure: Events = field(default_factory=list)
    fresh: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by each acknowledgement."""
    refusals: Counter[str] = field(default_factory=Counter)
    """By code and reason, or code alone if the server did not answer."""

    def next(self, count: int) -> Events:
        """Returns events nobody acknowledged yet, new ones when there are too few."""
        events = [self.unsure.pop() for _ in range(min(count, len(self.unsure)))]
        now = SystemClock().now()
        while len(events) < count:
            event = make_event(self.dice.choice(self.users), now, credits=self.dice.randrange(4))
            events.append(to_wire(event))
            self.sent += 1
            self.credits += event.credits
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
                events = self._without_busy(
                    events, {at: r.reason for at, r in enumerate(answer.results) if r.reason}
                )
        except aio.AioRpcError as error:
            self.unsure += events
            self._refused(error)
            raise
        self._acknowledge(events)

    async def work(self, usage: usage_pb2_grpc.UsageServiceStub, count: int) -> None:
        """Sends until a call fails."""
        with contextlib.suppress(aio.AioRpcError):
            while True:
                await self.send(usage, count)

    async def ingest(self, usage: usage_pb2_grpc.UsageServiceStub, count: int) -> None:
        """Sends batches over one stream until it fails."""
        stream: Any = usage.IngestUsage(metadata=bearer(SERVICE_KEY))
        waiting: deque[Events] = deque()
        try:
            for sequence in itertools.count(1):
                waiting.append(self.next(count))
                request = usage_pb2.IngestUsageRequest(sequence=sequence, events=waiting[-1])
                await stream.write(request)
                if len(waiting) < UNACKNOWLEDGED:
                    continue
                answer = await stream.read()
                if answer is aio.EOF:
                    return
                rejected = {each.index: each.reason for each in answer.rejected}
                self._acknowledge(self._without_busy(waiting.popleft(), rejected))
        except aio.AioRpcError as error:
            self._refused(error)
        except asyncio.InvalidStateError:
            # Written to after its end.
            return
        finally:
            self.unsure += itertools.chain.from_iterable(waiting)

    def _without_busy(self, events: Events, rejected: dict[int, str]) -> Events:
        """Returns those that were recorded; whose account was held for too long stays unsure."""
        assert set(rejected.values()) <= {"CONFLICT"}
        self.unsure += [events[index] for index in rejected]
        return [event for index, event in enumerate(events) if index not in rejected]

    def _acknowledge(self, events: Events) -> None:
        self.acknowledged.update(event.event_id for event in events)
        self.fresh.set()

    def _refused(self, error: aio.AioRpcError) -> None:
        answered = rpc_status.from_call(error)
        reason = f" {refusal_of(error)[1]}" if answered else ""
        if answered and error.code() is StatusCode.RESOURCE_EXHAUSTED:
            kind = error_details_pb2.RetryInfo.DESCRIPTOR
            assert any(detail.Is(kind) for detail in answered.details)
        self.refusals[f"{error.code().name}{reason}"] += 1


async def kept(owner: Connection, load: Load) -> bool:
    """Tells whether each acknowledged event is recorded exactly once and the ledger adds up."""
    found = await owner.fetchval(
        "SELECT count(*) FROM tool_usage WHERE id = ANY($1::uuid[])", list(load.acknowledged)
    )
    return bool(found == len(load.acknowledged) and not await ledger_faults(owner))


async def finish(
    owner: Connection, load: Load, usage: usage_pb2_grpc.UsageServiceStub, count: int = 1
) -> None:
    """Sends what is unsure until all is acknowledged; then everything is there, once."""
    while load.unsure:
        try:
            await load.send(usage, min(count, len(load.unsure)))
        except aio.AioRpcError as error:
            # Other replicas may still hold the accounts.
            if error.code() is not StatusCode.ABORTED:
                raise
    assert await kept(owner, load)
    assert await owner.fetchval("SELECT count(*) FROM tool_usage") == load.sent
    assert await owner.fetchval("SELECT sum(used) FROM credit_accounts") == load.credits
    assert len(load.acknowledged) == load.sent
