"""How soon those who watch a balance see it change: real streams, one change at a time."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, TypeVar

import uvloop
from finity.usage.v1 import report_pb2, report_pb2_grpc, usage_pb2, usage_pb2_grpc
from grpc import aio

from benchmarks.bodies import event_ids
from benchmarks.load import LoadError
from benchmarks.work import Sample

_CHANNEL = [("grpc.enable_http_proxy", 0)]
# Every watched balance is read again sooner than that: a change is lost then.
_LOST_SECONDS = 10.0
# Moderate: a change is seen before the next is made.
_EVERY_SECONDS = 0.01
_Told = report_pb2.WatchBalanceResponse
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Watching:
    """
    Records a call of each watched user in turn and waits until its stream says so.

    A latency is from the answer of RecordUsage, the first moment a client can know of the
    commit, to the balance on the stream; 0 where the balance comes first.
    """

    watched: str
    """host:port of the usage service whose streams are open."""
    changed: str
    """Of the one that records."""
    metadata: tuple[tuple[str, str], ...]
    users: Sequence[str]

    def run(self, seconds: float) -> Sample:
        try:
            return uvloop.run(self._run(seconds))
        except aio.AioRpcError as error:
            raise LoadError(f"WatchBalance or RecordUsage: {error.code().name}") from None

    async def _run(self, seconds: float) -> Sample:
        async with (
            aio.insecure_channel(self.watched, options=_CHANNEL) as watched,
            aio.insecure_channel(self.changed, options=_CHANNEL) as changed,
        ):
            reports = report_pb2_grpc.ReportServiceStub(watched)
            recorder = usage_pb2_grpc.UsageServiceStub(changed)
            streams = [
                Stream(user_id, reports.WatchBalance(_watch(user_id), metadata=self.metadata))
                for user_id in self.users
            ]
            await asyncio.gather(*(each.newer() for each in streams))
            latencies, started = [], time.perf_counter()
            ids = event_ids(int(seconds / _EVERY_SECONDS))
            for number, (stream, event_id) in enumerate(zip(cycle(streams), ids, strict=False)):
                await asyncio.sleep(started + number * _EVERY_SECONDS - time.perf_counter())
                if time.perf_counter() - started > seconds:
                    break
                call = recorder.RecordUsage(
                    _spend(stream.user_id, event_id), metadata=self.metadata
                )
                latencies.append(await stream.sees(call))
            return Sample.of(time.perf_counter() - started, latencies, 0)


class Stream:
    """An open WatchBalance, and the version it told of last."""

    def __init__(self, user_id: str, call: "aio.UnaryStreamCall[Any, _Told]") -> None:
        self.user_id = user_id
        self._call = call
        self._version = 0

    async def sees(self, change: "Awaitable[usage_pb2.RecordUsageResponse]") -> float:
        """Returns how long after its answer a change is told; LoadError if something else is."""
        (answer, answered), (balance, told) = await asyncio.gather(
            _timed(change), _timed(self.newer())
        )
        if balance.available != answer.available:
            raise LoadError(f"told {balance.available} credits, {answer.available} are left")
        return max(told - answered, 0.0)

    async def newer(self) -> usage_pb2.Balance:
        """Returns the next balance that is newer than the last; LoadError if none comes."""
        try:
            async with asyncio.timeout(_LOST_SECONDS):
                # A balance that did not change is repeated now and then.
                while isinstance(message := await self._call.read(), _Told):
                    if message.balance.version > self._version:
                        self._version = message.balance.version
                        return message.balance
        except TimeoutError:
            raise LoadError(f"no balance for {_LOST_SECONDS:.0f} s") from None
        raise LoadError("the server ended a stream")


async def _timed(due: Awaitable[T]) -> tuple[T, float]:
    """Returns what comes, and when it came."""
    return await due, time.perf_counter()


def _watch(user_id: str) -> report_pb2.WatchBalanceRequest:
    return report_pb2.WatchBalanceRequest(user_id=user_id)


def _spend(user_id: str, event_id: str) -> usage_pb2.RecordUsageRequest:
    event = usage_pb2.UsageEvent(event_id=event_id, user_id=user_id, tool_name="rewrite", credits=1)
    return usage_pb2.RecordUsageRequest(event=event)
