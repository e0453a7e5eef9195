"""A flush that tests hold up, let fail and look into."""

import asyncio
from collections.abc import Sequence

from chassis.refusals import Conflict

POISON = -1


class Flushes:
    """A flush that remembers what it was given and waits while `open` is not set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.started = asyncio.Event()
        self.conflicts = 0

    async def flush(self, items: Sequence[int]) -> Sequence[str]:
        self.batches.append(list(items))
        self.started.set()
        await self.open.wait()
        if self.conflicts:
            self.conflicts -= 1
            raise Conflict
        if POISON in items:
            raise ValueError("an item that no statement takes")
        return [f"done {item}" for item in items]
