"""Streams of batches: pipelined into the flushes, acknowledged in order, held back when ahead."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from chassis.errors import Refusal
from services.usage.domain.metering import Event, Result
from services.usage.errors import SequenceNotGrowing
from services.usage.service.metering import MeteringService

UNACKNOWLEDGED = 4
"""Most batches of a stream that are read and not acknowledged; the contract names it."""


class Batch(NamedTuple):
    """What a caller sends at a time."""

    sequence: int
    """Grows from batch to batch."""
    events: Sequence[Event | Refusal]
    """Events, and refusals in the place of those that are none."""

    @property
    def good(self) -> list[Event]:
        return [event for event in self.events if isinstance(event, Event)]


class Recorded(NamedTuple):
    """A batch that is durable, as are all before it on its stream."""

    batch: Batch
    results: Sequence[Result]
    """Of its events that are no refusals, in order."""


class _Pending(NamedTuple):
    batch: Batch
    results: asyncio.Task[Sequence[Result]]


class IngestService:
    """Records streams of batches; any number of streams share the flushes."""

    def __init__(self, metering: MeteringService) -> None:
        self._metering = metering

    async def ingest(self, batches: AsyncGenerator[Batch, None]) -> AsyncGenerator[Recorded, None]:
        """
        Yields each batch once it is durable, in the order they came.

        Whatever ends the batches is raised after those before it are answered. What a
        batch itself is refused for (Overloaded, DatabaseUnavailable) ends the stream;
        of those behind it nothing is known.
        """
        stream = _Stream(self._metering)
        reader = asyncio.create_task(stream.read(batches))
        try:
            while (pending := await stream.read_so_far.get()) is not None:
                yield Recorded(pending.batch, await pending.results)
                # Back here once the acknowledgement is on its way.
                stream.tasks.discard(pending.results)
                stream.places.release()
            await reader
        finally:
            await _end([reader, *stream.tasks])


class _Stream:
    """One stream: what was read of it and is not acknowledged."""

    def __init__(self, metering: MeteringService) -> None:
        self._metering = metering
        self.places = asyncio.Semaphore(UNACKNOWLEDGED)
        self.read_so_far: asyncio.Queue[_Pending | None] = asyncio.Queue()
        """Ends with None."""
        self.tasks: set[asyncio.Task[Sequence[Result]]] = set()
        """Of the batches that are not acknowledged."""

    async def read(self, batches: AsyncGenerator[Batch, None]) -> None:
        """Reads while there is a place for another batch; each is in the queue at once."""
        previous = 0
        try:
            while True:
                await self.places.acquire()
                batch = await anext(batches, None)
                if batch is None:
                    return
                if batch.sequence <= previous:
                    raise SequenceNotGrowing(
                        metadata={"sequence": str(batch.sequence), "previous": str(previous)}
                    )
                previous = batch.sequence
                task = asyncio.create_task(self._record(batch))
                self.tasks.add(task)
                self.read_so_far.put_nowait(_Pending(batch, task))
        finally:
            self.read_so_far.put_nowait(None)
            await batches.aclose()

    async def _record(self, batch: Batch) -> Sequence[Result]:
        good = batch.good
        return await self._metering.record(good) if good else ()


async def _end(tasks: Sequence[asyncio.Task[None] | asyncio.Task[Sequence[Result]]]) -> None:
    """Ends what still runs; why each ended was told, or nobody is there to be told."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
