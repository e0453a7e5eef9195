"""
Group commit: many callers, one transaction, each answered after COMMIT with its own result.

While one flush is under way the next ones gather, so batches grow with the load
and a lone call never waits for company. The queue is bounded; a flush that
fails for one caller's sake is split, so that it fails for that caller alone.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import Gauge, Histogram

from chassis.refusals import Conflict, DatabaseUnavailable, Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")

ATTEMPTS = 3
# What a flush is refused for whoever is in it; anything else may be the fault of one caller.
_EVERYBODYS = (Conflict, DatabaseUnavailable)
RETRY_AFTER = 0.5

WAITING = Gauge("finity_group_commit_waiting", "Items waiting for a flush.", ["queue"])
FLUSHED = Histogram(
    "finity_group_commit_items",
    "Items written by one flush.",
    ["queue"],
    buckets=(1, 4, 16, 64, 256, 1024, 4096),
)


@dataclass(slots=True)
class _Ticket(Generic[Item, Result]):
    items: Sequence[Item]
    size: int
    answer: asyncio.Future[Sequence[Result]]


class GroupCommit(Generic[Item, Result]):
    """A bounded queue in front of a flush; `run` must be running."""

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_flush: int,
        max_waiting: int,
        size: Callable[[Item], int] | None = None,
    ) -> None:
        """
        `flush` writes items durably and returns a result for each, in order.

        Both bounds count items, by `size` where one is much more to write than another.
        """
        self._flush = flush
        self._size = size
        self._max_flush = max_flush
        self._max_waiting = max_waiting
        self._tickets: deque[_Ticket[Item, Result]] = deque()
        self._waiting = 0
        self._taken: list[_Ticket[Item, Result]] = []
        self._last_size = 0
        self._wake = asyncio.Event()
        self._flushed = FLUSHED.labels(name)
        WAITING.labels(name).set_function(lambda: self._waiting)

    def submit(self, items: Sequence[Item]) -> asyncio.Future[Sequence[Result]]:
        """Returns what has the results once they are durable; Overloaded when too many wait."""
        if not self.has_room(items):
            raise Overloaded(retry_after=RETRY_AFTER)
        answer: asyncio.Future[Sequence[Result]] = asyncio.get_running_loop().create_future()
        size = self._size_of(items)
        self._tickets.append(_Ticket(items, size, answer))
        self._waiting += size
        self._wake.set()
        return answer

    def has_room(self, items: Sequence[Item]) -> bool:
        """Tells whether they may wait as well."""
        return self._waiting + self._size_of(items) <= self._max_waiting

    @property
    def busy(self) -> bool:
        """Whether anything waits or is being written."""
        return bool(self._tickets or self._taken)

    async def run(self) -> None:
        """Flushes until cancelled; what is then not answered is cancelled too."""
        try:
            while True:
                await self._wake.wait()
                self._taken = self._take()
                if self._taken:
                    await self._settle(self._taken)
                    self._taken = []
        finally:
            for ticket in (*self._taken, *self._tickets):
                ticket.answer.cancel()

    def _size_of(self, items: Sequence[Item]) -> int:
        return len(items) if self._size is None else sum(map(self._size, items))

    def _take(self) -> list[_Ticket[Item, Result]]:
        taken: list[_Ticket[Item, Result]] = []
        # Callers come back together. If each flush took whatever waits, those of many and those of
        # next to nobody would take turns; so half of them are written while the others come back.
        most = room = min(self._max_flush, (self._waiting + self._last_size + 1) // 2)
        while self._tickets and (not taken or self._tickets[0].size <= room):
            ticket = self._tickets.popleft()
            self._waiting -= ticket.size
            # Whoever gave up before the flush is not written at all.
            if not ticket.answer.done():
                taken.append(ticket)
                room -= ticket.size
        if not self._tickets:
            self._wake.clear()
        self._last_size = most - room
        return taken

    async def _settle(self, tickets: list[_Ticket[Item, Result]]) -> None:
        try:
            await self._write(tickets)
        except Exception as error:  # noqa: BLE001 - one caller's item must not sink the others
            if len(tickets) == 1 or isinstance(error, _EVERYBODYS):
                for ticket in tickets:
                    _refuse(ticket, error)
                return
            half = len(tickets) // 2
            await self._settle(tickets[:half])
            await self._settle(tickets[half:])

    async def _write(self, tickets: list[_Ticket[Item, Result]]) -> None:
        items = [item for ticket in tickets for item in ticket.items]
        for attempt in range(ATTEMPTS):
            try:
                results = await self._flush(items)
                break
            except Conflict:
                if attempt == ATTEMPTS - 1:
                    raise
        self._flushed.observe(len(items))
        start = 0
        for ticket in tickets:
            end = start + len(ticket.items)
            if not ticket.answer.done():
                ticket.answer.set_result(results[start:end])
            start = end


def _refuse(ticket: _Ticket[Item, Result], error: Exception) -> None:
    if not ticket.answer.done():
        ticket.answer.set_exception(error)
