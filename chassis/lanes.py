"""
Several group commits beside each other, for work of which some comes one by one, some in bulk.

While one flush of a batch is with the database the next is prepared. Single calls gain nothing by
that: one flush of many costs less than two of half as many (decision 32).
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic

from chassis.groupcommit import RETRY_AFTER, GroupCommit, Item, Result
from chassis.refusals import Overloaded

# Items of a submission that is no batch yet.
FEW = 32


class Lanes(Generic[Item, Result]):
    """
    Several queues beside each other, each with one flush under way; `run` must be running.

    Small submissions go through the first one, as long as the others have nothing to do.
    Otherwise items are spread over all, those of one key always to one lane, so that no
    two flushes of this process wait for each other.
    """

    def __init__(
        self,
        lanes: Sequence[GroupCommit[Item, Result]],
        key: Callable[[Item], Hashable],
    ) -> None:
        self._lanes = lanes
        self._key = key

    def submit(self, items: Sequence[Item]) -> Awaitable[Sequence[Result]]:
        """
        Returns what has the items' results, in order, once they are durable.

        Overloaded, and none of them is written, when too many wait in any lane.
        """
        first, *others = self._lanes
        if len(items) <= FEW and not any(lane.busy for lane in others):
            return first.submit(items)
        parts: dict[int, list[int]] = {}
        for index, item in enumerate(items):
            parts.setdefault(hash(self._key(item)) % len(self._lanes), []).append(index)
        if len(parts) == 1:
            return self._lanes[next(iter(parts))].submit(items)
        shares = [(self._lanes[lane], [items[i] for i in part]) for lane, part in parts.items()]
        if not all(lane.has_room(share) for lane, share in shares):
            raise Overloaded(retry_after=RETRY_AFTER)
        return _in_order(list(parts.values()), [lane.submit(share) for lane, share in shares])

    async def run(self) -> None:
        """Flushes until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(lane.run())


async def _in_order(
    parts: Sequence[Sequence[int]], answers: Sequence[asyncio.Future[Sequence[Result]]]
) -> Sequence[Result]:
    found: dict[int, Result] = {}
    for part, results in zip(parts, await asyncio.gather(*answers), strict=True):
        found.update(zip(part, results, strict=True))
    return [found[index] for index in range(len(found))]
