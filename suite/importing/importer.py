"""The import itself: a few batches under way at a time, every row accounted for."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

from finity.usage.v1 import usage_pb2_grpc

from chassis.channels import open_channel
from suite.importing import rows
from suite.importing.checkpoint import Checkpoint
from suite.importing.layouts import Layout
from suite.importing.rows import Batch, Row
from suite.importing.sender import CALL_SECONDS, Sender
from suite.importing.tally import UNREADABLE, Tally
from suite.importing.target import Target

BATCH_ROWS = 1000
IN_FLIGHT = 4

Progress = Callable[[Tally], None]


class Importer:
    """One import of one file; `tally` is true at any moment."""

    def __init__(
        self, path: Path, layout: Layout, checkpoint: Checkpoint, progress: Progress
    ) -> None:
        self.tally = Tally()
        self._path = path
        self._layout = layout
        self._checkpoint = checkpoint
        self._progress = progress
        self._skipped = range(0)
        self._checked = range(0)

    async def run(self, target: Target) -> None:
        """Imports the file; SuiteError if the service cannot be reached or refuses the caller."""
        async with open_channel(target.address, target.service_key, CALL_SECONDS) as channel:
            sender = Sender(usage_pb2_grpc.UsageServiceStub(channel), target.address)
            await self._resume(sender)
            batches = rows.batches(self._rows(), BATCH_ROWS)
            workers = [asyncio.create_task(self._work(batches, sender)) for _ in range(IN_FLIGHT)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        self._checkpoint.forget_progress()
        self._progress(self.tally)

    async def _resume(self, sender: Sender) -> None:
        """Sends the checkpoint's last batch again; skips what is before it if it is recorded."""
        lines = self._checkpoint.last_batch
        # With no checkpoint lines.stop is 0: nothing is read.
        head = takewhile(lambda row: row.line < lines.stop, rows.read(self._path, self._layout))
        again = (row for row in head if row.line in lines)
        for batch in rows.batches(again, BATCH_ROWS):
            self.tally.add(batch, await sender.send(batch))
        if self.tally.rows:
            self._checked = lines
        if self.tally.rows == self.tally.duplicate:
            self._skipped = range(lines.start)

    async def _work(self, batches: Iterator[Batch], sender: Sender) -> None:
        # All workers draw from one iterator: what is not under way is not in memory.
        for batch in batches:
            recorded = self.tally.add(batch, await sender.send(batch))
            self._checkpoint.answered(batch, recorded=recorded)
            self._progress(self.tally)

    def _rows(self) -> Iterator[Row]:
        """Yields the rows to send and counts the others."""
        for row in rows.read(self._path, self._layout):
            if row.problem:
                self.tally.reject(row.line, UNREADABLE, row.problem)
            elif row.line in self._skipped:
                self.tally.skipped += 1
            elif row.line not in self._checked:
                yield row
