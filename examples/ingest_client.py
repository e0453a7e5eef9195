"""
Many tool calls straight to usage over one stream that is resumed whenever it breaks.

    FINITY_SERVICE_KEY=... python examples/ingest_client.py USER_ID COUNT

`Ingest` is what a program would take over: it numbers batches, keeps what is not
acknowledged and sends that again on the next stream. Event ids make it harmless.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TypeAlias

from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from google.rpc import error_details_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status

from chassis.ids import uuid7

ADDRESS = os.environ.get("FINITY_USAGE_ADDRESS", "127.0.0.1:50053")
KEY = os.environ.get("FINITY_SERVICE_KEY", "")
BATCH = 500
# Kept until they are acknowledged, so that memory is bounded; the server holds 4 at most.
KEPT = 8
RETRY_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 120.0
AGAIN = {StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.ABORTED}
CHANNEL = [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 2000)]
Request: TypeAlias = usage_pb2.IngestUsageRequest
Answer: TypeAlias = usage_pb2.IngestUsageResponse
Call: TypeAlias = "aio.StreamStreamCall[Request, Answer]"


class Ingest:
    """Sends events until each is acknowledged, over as many streams as that takes."""

    def __init__(self, usage: usage_pb2_grpc.UsageServiceStub, key: str) -> None:
        self._usage = usage
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._sequence = 0
        self._kept: dict[int, Request] = {}
        self._again: list[usage_pb2.UsageEvent] = []
        self._acknowledged = asyncio.Event()
        self.outcomes: Counter[str] = Counter()
        """Events by what became of them: accepted, duplicate, or why they were rejected."""
        self.streams = 0

    async def send(self, events: Iterable[usage_pb2.UsageEvent]) -> None:
        """Returns when all are acknowledged; AioRpcError for what sending again does not help."""
        source = iter(events)
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while True:
            before = self.outcomes.total()
            try:
                await self._stream(source)
                return
            except aio.AioRpcError as error:
                if self.outcomes.total() > before:
                    heard = loop.time()
                if not passes(error) or loop.time() - heard > LONGEST_WAIT_SECONDS:
                    raise
                await asyncio.sleep(retry_delay(error))

    async def _stream(self, source: Iterator[usage_pb2.UsageEvent]) -> None:
        self.streams += 1
        # wait_for_ready: while the server starts again there is nothing to refuse us.
        call = self._usage.IngestUsage(metadata=self._metadata, wait_for_ready=True)
        writer = asyncio.create_task(self._write(call, source))
        try:
            async for answer in call:
                self._take(answer)
        finally:
            # A writer that outlived its stream would take batches for the next one and lose them.
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: Call, source: Iterator[usage_pb2.UsageEvent]) -> None:
        for request in list(self._kept.values()):
            await call.write(request)
        while True:
            request = self._next(source) if len(self._kept) < KEPT else None
            if request is not None:
                await call.write(request)
            elif self._kept:
                self._acknowledged.clear()
                await self._acknowledged.wait()
            else:
                await call.done_writing()
                return

    def _next(self, source: Iterator[usage_pb2.UsageEvent]) -> Request | None:
        events = self._again[:BATCH] or list(islice(source, BATCH))
        del self._again[:BATCH]
        if not events:
            return None
        self._sequence += 1
        request = Request(sequence=self._sequence, events=events)
        self._kept[self._sequence] = request
        return request

    def _take(self, answer: Answer) -> None:
        request = self._kept.pop(answer.sequence)
        self.outcomes["accepted"] += answer.accepted
        self.outcomes["duplicate"] += answer.duplicates
        for rejected in answer.rejected:
            if rejected.reason == "CONFLICT":
                # Somebody held the account for too long; this alone passes by itself.
                self._again.append(request.events[rejected.index])
            else:
                self.outcomes[rejected.reason] += 1
        self._acknowledged.set()


def passes(error: aio.AioRpcError) -> bool:
    """Tells whether a new stream may fare better."""
    # grpcio itself says INTERNAL when the server ended a stream that was being written to.
    ours = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType] - has all it reads
    return error.code() in AGAIN or (error.code() is StatusCode.INTERNAL and ours is None)


def retry_delay(error: aio.AioRpcError) -> float:
    """Returns the seconds after which the server wants to be asked again."""
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType] - has all it reads
    retry = error_details_pb2.RetryInfo()
    if status and any(detail.Unpack(retry) for detail in status.details):
        return float(retry.retry_delay.ToMilliseconds() / 1000)
    return RETRY_SECONDS


def new_events(user_id: str, count: int) -> Iterable[usage_pb2.UsageEvent]:
    for _ in range(count):
        # Made once per tool call: sending the same event again spends nothing again.
        yield usage_pb2.UsageEvent(
            event_id=str(uuid7(datetime.now(UTC))),
            user_id=user_id,
            tool_name="example.ingest",
            credits=1,
        )


async def main(user_id: str, count: int) -> None:
    async with aio.insecure_channel(ADDRESS, options=CHANNEL) as channel:
        ingest = Ingest(usage_pb2_grpc.UsageServiceStub(channel), KEY)
        try:
            await ingest.send(new_events(user_id, count))
        except aio.AioRpcError as error:
            sys.exit(f"failed: {error.code().name}: {error.details()}")
    outcomes = ", ".join(f"{count} {what}" for what, count in sorted(ingest.outcomes.items()))
    print(f"acknowledged over {ingest.streams} streams: {outcomes}")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
