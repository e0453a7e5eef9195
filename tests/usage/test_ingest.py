"""IngestUsage through real channels, on both transports."""

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from google.rpc import error_details_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status

from chassis.clock import SystemClock
from chassis.postgres import Connection
from chassis.refusals import DatabaseUnavailable
from services.usage.domain.metering import Event, Result
from services.usage.service import ingest
from services.usage.service.metering import MeteringService
from suite.ports import free_port
from tests.chassis.waiting import until
from tests.factories import (
    at_once,
    connect_owner,
    eventually,
    ledger_faults,
    make_account,
    make_event,
    start_process,
    to_wire,
)
from tests.fakes import FakeClock
from tests.running import SERVICE_KEY, House, bearer, open_house, refusal_of

Stream = Any
Ack = usage_pb2.IngestUsageResponse


def batch(sequence: int, *events: Event) -> usage_pb2.IngestUsageRequest:
    return usage_pb2.IngestUsageRequest(sequence=sequence, events=map(to_wire, events))


def opened(house: House) -> Stream:
    return house.usage.IngestUsage(metadata=house.service)


async def refusal(stream: Stream) -> tuple[StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as error:
        await stream.read()
    return refusal_of(error.value)


async def person(house: House, credits: int = 1000) -> UUID:
    return UUID((await house.person(credits=credits)).user_id)


class Gate:
    """Holds what is to be recorded until it opens, and counts who came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.came = 0
        self.open = asyncio.Event()
        record = MeteringService.record

        async def held(metering: MeteringService, events: Sequence[Event]) -> Sequence[Result]:
            self.came += 1
            await self.open.wait()
            return await record(metering, events)

        monkeypatch.setattr(MeteringService, "record", held)


async def test_batches_are_acknowledged_in_order(house: House, clock: FakeClock) -> None:
    """Each batch gets counts and its place; a second stream with the same events spends nothing."""
    user_id = await person(house)
    events = [make_event(user_id, clock.now(), credits=2) for _ in range(9)]
    batches = [batch(place, *events[at : at + 3]) for place, at in ((1, 0), (2, 3), (7, 6))]
    for outcome in ("accepted", "duplicates"):
        stream = opened(house)
        for each in batches:
            await stream.write(each)
        await stream.done_writing()
        acks = [ack async for ack in stream]
        assert [(ack.sequence, getattr(ack, outcome)) for ack in acks] == [(1, 3), (2, 3), (7, 3)]
    async with connect_owner(house.database_url) as owner:
        assert await owner.fetchval("SELECT used FROM credit_accounts") == 18
        assert await ledger_faults(owner) == []


async def test_an_acknowledged_batch_is_durable(house: House, clock: FakeClock) -> None:
    """When the acknowledgement is there, so are the rows."""
    user_id = await person(house)
    stream = opened(house)
    async with connect_owner(house.database_url) as owner:
        for sequence in range(1, 6):
            await stream.write(batch(sequence, make_event(user_id, clock.now())))
            assert (await stream.read()).sequence == sequence
            assert await owner.fetchval("SELECT count(*) FROM tool_usage") == sequence


async def test_a_bad_event_never_sinks_its_batch(house: House, clock: FakeClock) -> None:
    """Rejected events are named by place and reason; the others of the batch are recorded."""
    user_id = await person(house, credits=5)
    good, dear = make_event(user_id, clock.now(), credits=5), make_event(user_id, clock.now())
    stranger = make_event(uuid4(), clock.now())
    request = batch(1, good, dear, good, stranger)
    request.events.add(event_id="nonsense", user_id=str(user_id), tool_name="x")
    request.events.add(
        event_id="0192e4a0-0000-7000-8000-000000000001", user_id=str(user_id), tool_name="x"
    )
    stream = opened(house)
    await stream.write(request)
    ack = await stream.read()
    assert (ack.sequence, ack.accepted, ack.duplicates) == (1, 1, 1)
    assert [(each.index, each.reason) for each in ack.rejected] == [
        (1, "NO_CREDITS"),
        (3, "ACCOUNT_NOT_OPEN"),
        (4, "INVALID_REQUEST"),
        (5, "EVENT_TIME_OUT_OF_RANGE"),
    ]
    assert all(each.message for each in ack.rejected)


@pytest.mark.parametrize("second", [1, 3])
async def test_a_sequence_that_does_not_grow_is_refused(
    house: House, clock: FakeClock, second: int
) -> None:
    """The batches before it are acknowledged, then the stream ends; its events are not recorded."""
    user_id = await person(house)
    stream = opened(house)
    await stream.write(batch(3, make_event(user_id, clock.now())))
    await stream.write(batch(second, make_event(user_id, clock.now())))
    assert (await stream.read()).sequence == 3
    assert await refusal(stream) == (StatusCode.INVALID_ARGUMENT, "SEQUENCE_NOT_GROWING")
    async with connect_owner(house.database_url) as owner:
        assert await owner.fetchval("SELECT count(*) FROM tool_usage") == 1


@pytest.mark.parametrize(
    ("sequence", "count"), [(0, 1), (-1, 1), (1, 0), (1, 1001)], ids=["0", "-1", "none", "1001"]
)
async def test_a_batch_keeps_to_the_contract(
    house: House, clock: FakeClock, sequence: int, count: int
) -> None:
    """Sequences start at 1; a batch has 1 to 1,000 events."""
    event = make_event(uuid4(), clock.now())
    stream = opened(house)
    await stream.write(batch(sequence, *[event] * count))
    assert await refusal(stream) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_a_thousand_events_fit(house: House, clock: FakeClock) -> None:
    """The largest batch is below the largest message."""
    user_id = await person(house)
    stream = opened(house)
    tool_name = "t" * 100
    events = [make_event(user_id, clock.now(), tool_name=tool_name) for _ in range(1000)]
    await stream.write(batch(2**63 - 1, *events))
    assert await stream.read() == Ack(sequence=2**63 - 1, accepted=1000)


@pytest.mark.parametrize("most", [ingest.UNACKNOWLEDGED, 7], ids=["contract", "control"])
async def test_the_server_reads_no_further_than_the_contract_says(
    house: House, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Four batches at most are in its hands; with another number it is another."""
    assert ingest.UNACKNOWLEDGED == 4
    monkeypatch.setattr(ingest, "UNACKNOWLEDGED", most)
    user_id = await person(house)
    gate = Gate(monkeypatch)
    stream = opened(house)
    for sequence in range(1, 21):
        await stream.write(batch(sequence, make_event(user_id, clock.now())))
    await stream.done_writing()

    async def as_many_came() -> bool:
        return gate.came >= most

    await eventually(as_many_came)
    await asyncio.sleep(0.3)
    assert gate.came == most
    gate.open.set()
    assert [ack.sequence async for ack in stream] == list(range(1, 21))


async def test_a_sender_is_held_back_by_flow_control(
    house: House, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing is acknowledged a sender of large batches cannot go on for ever."""
    user_id = await person(house)
    gate = Gate(monkeypatch)
    stream = opened(house)
    tool_name = "t" * 100
    events = [make_event(user_id, clock.now(), tool_name=tool_name) for _ in range(1000)]
    written = 0

    async def write() -> None:
        nonlocal written
        for sequence in range(1, 201):
            await stream.write(batch(sequence, *events))
            written += 1
        await stream.done_writing()

    writer = asyncio.create_task(write())
    held = 0
    while written > held or not written:
        held = written
        await asyncio.sleep(0.5)
    assert not writer.done()
    assert written < 100
    gate.open.set()
    acks = [ack.sequence async for ack in stream]
    await writer
    assert acks == list(range(1, 201))


async def test_a_failure_ends_the_stream_after_what_is_durable(
    house: House, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was recorded is acknowledged; the rest is unknown and harmless to send again."""
    user_id = await person(house)
    events = [make_event(user_id, clock.now()) for _ in range(6)]
    record, calls = MeteringService.record, 0

    written = asyncio.Event()

    async def fails_once(metering: MeteringService, some: Sequence[Event]) -> Sequence[Result]:
        nonlocal calls
        # grpcio has a status of its own for a stream that ends while it is written to.
        await written.wait()
        calls += 1
        if calls == 3:
            raise DatabaseUnavailable
        return await record(metering, some)

    monkeypatch.setattr(MeteringService, "record", fails_once)
    stream = opened(house)
    for sequence, event in enumerate(events, 1):
        await stream.write(batch(sequence, event))
    written.set()
    assert [(await stream.read()).sequence for _ in range(2)] == [1, 2]
    assert await refusal(stream) == (StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    stream = opened(house)
    for sequence, event in enumerate(events[2:], 3):
        await stream.write(batch(sequence, event))
    await stream.done_writing()
    assert sum([ack.accepted + ack.duplicates async for ack in stream]) == 4
    async with connect_owner(house.database_url) as owner:
        assert await owner.fetchval("SELECT count(*) FROM tool_usage") == 6
        assert await ledger_faults(owner) == []


async def test_a_full_queue_ends_the_stream_with_a_delay(
    database_url: str,
    redis_url: str,
    transport: str,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OVERLOADED says when to come back; nothing of the batch is recorded."""
    settings = {"queue_events": 2000, "flush_events": 1}
    async with open_house(database_url, redis_url, transport, clock, **settings) as house:
        user_id = await person(house, credits=10_000)
        gate = Gate(monkeypatch)
        streams = [opened(house) for _ in range(4)]
        for stream in streams:
            for sequence in range(1, 5):
                events = [make_event(user_id, clock.now(), credits=0) for _ in range(400)]
                await stream.write(batch(sequence, *events))
            await stream.done_writing()
        # Together they are more than the queue takes.
        await until(lambda: gate.came == 16)
        gate.open.set()
        acknowledged, refusals = 0, []
        for stream in streams:
            try:
                acknowledged += sum([ack.accepted async for ack in stream])
            except aio.AioRpcError as error:
                refusals.append(error)
        assert refusals
        for refused in refusals:
            assert refusal_of(refused) == (StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            retry = error_details_pb2.RetryInfo()
            status: Any = rpc_status.from_call(refused)
            assert any(detail.Unpack(retry) for detail in status.details)
        async with connect_owner(database_url) as owner:
            assert await owner.fetchval("SELECT count(*) FROM tool_usage") >= acknowledged
            assert await ledger_faults(owner) == []


async def test_fifty_streams_record_an_event_once(house: House, clock: FakeClock) -> None:
    """The same batch on 50 streams at once is accepted on one of them."""
    user_id = await person(house)
    same = [make_event(user_id, clock.now()) for _ in range(5)]

    async def send(_: int) -> Ack:
        stream = opened(house)
        await stream.write(batch(1, *same))
        await stream.done_writing()
        return await stream.read()  # type: ignore[no-any-return]

    acks = await at_once(50, send)
    assert sum(ack.accepted for ack in acks) == 5
    assert sum(ack.duplicates for ack in acks) == 49 * 5
    async with connect_owner(house.database_url) as owner:
        assert await owner.fetchval("SELECT used FROM credit_accounts") == 5
        assert await ledger_faults(owner) == []


async def test_a_sender_that_leaves_leaves_nothing_behind(house: House, clock: FakeClock) -> None:
    """A cancelled stream costs nothing but its own batches; the next one works."""
    user_id = await person(house)
    for _ in range(20):
        stream = opened(house)
        await stream.write(batch(1, make_event(user_id, clock.now())))
        stream.cancel()
    stream = opened(house)
    await stream.write(batch(1, make_event(user_id, clock.now())))
    assert (await stream.read()).accepted == 1
    async with connect_owner(house.database_url) as owner:
        await eventually(one_reads)
        assert await ledger_faults(owner) == []


async def one_reads() -> bool:
    """Tells whether a single stream is being read."""
    return sum("_Stream.read" in repr(task) for task in asyncio.all_tasks()) == 1


async def test_a_server_that_stops_acknowledges_what_is_durable(
    database_url: str, redis_url: str, transport: str, owner: Connection
) -> None:
    """SIGTERM: acknowledgements of what was read, then STOPPING, long before the drain is over."""
    user_id = await make_account(owner, FakeClock(), credits=1000)
    variables = {"FINITY_TRANSPORT": transport, "FINITY_DRAIN_SECONDS": "60"}
    process = await start_process("usage", database_url, redis_url, variables, port=free_port())
    try:
        async with aio.insecure_channel(f"127.0.0.1:{process.port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 60)
            usage = usage_pb2_grpc.UsageServiceStub(channel)
            stream: Stream = usage.IngestUsage(metadata=bearer(SERVICE_KEY))
            now = SystemClock().now()
            acknowledged = 0
            for sequence in range(1, 4):
                await stream.write(batch(sequence, make_event(user_id, now)))
                acknowledged += (await stream.read()).accepted
            os.kill(process.child.pid, signal.SIGTERM)
            assert await asyncio.wait_for(refusal(stream), 30) == (
                StatusCode.UNAVAILABLE,
                "STOPPING",
            )
        assert (await asyncio.wait_for(process.finish(), 30))[0] == 0
    finally:
        await process.kill()
    assert await owner.fetchval("SELECT count(*) FROM tool_usage") == acknowledged == 3
    assert await ledger_faults(owner) == []
