"""IngestUsage on the wire: a batch in, its acknowledgement out."""

from collections.abc import AsyncGenerator, AsyncIterable
from datetime import datetime

from finity.usage.v1 import usage_pb2

from chassis.clock import Clock
from chassis.errors import Refusal
from services.usage.domain.metering import Event, Outcome, Result
from services.usage.rpc.events import read_events, sentence_of
from services.usage.rpc.refusals import REFUSALS, refusal_of
from services.usage.service.ingest import Batch, Recorded


async def read_batches(
    requests: AsyncIterable[usage_pb2.IngestUsageRequest], clock: Clock
) -> AsyncGenerator[Batch, None]:
    """Yields what the requests hold."""
    async for request in requests:
        yield Batch(request.sequence, await read_events(request.events, clock.now()))


def acknowledgement(recorded: Recorded, now: datetime) -> usage_pb2.IngestUsageResponse:
    """Returns what became of a batch."""
    results = iter(recorded.results)
    answer = usage_pb2.IngestUsageResponse(sequence=recorded.batch.sequence)
    for index, event in enumerate(recorded.batch.events):
        if isinstance(event, Event):
            _count(answer, index, event, next(results), now)
        else:
            _reject(answer, index, event)
    return answer


def _count(
    answer: usage_pb2.IngestUsageResponse, index: int, event: Event, result: Result, now: datetime
) -> None:
    if result.outcome is Outcome.ACCEPTED:
        answer.accepted += 1
    elif result.outcome in REFUSALS:
        _reject(answer, index, refusal_of(event.credits, result, now))
    else:
        answer.duplicates += 1


def _reject(answer: usage_pb2.IngestUsageResponse, index: int, refusal: Refusal) -> None:
    answer.rejected.add(
        index=index,
        reason=refusal.reason,
        message=sentence_of(refusal),
        metadata=refusal.metadata,
    )
