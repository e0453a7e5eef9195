"""
Group read: calls that ask for single rows at the same time share one statement.

A lone call waits for no company. A statement starts after every call it answers
came, so each sees what was committed before it asked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class GroupRead(Generic[Key, Value]):
    """One read under way, and the keys that wait for the next one."""

    def __init__(self, read: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Value]]]) -> None:
        """`read` returns what it finds, by key."""
        self._read = read
        self._waiting: list[tuple[Key, asyncio.Future[Value | None]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: Key) -> Value | None:
        """Returns what there is of a key, None if nothing; raises what the read raised."""
        answer: asyncio.Future[Value | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, answer))
        if self._reading is None:
            self._reading = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._answer()
        finally:
            self._reading = None
            # Only where this task is cancelled does anybody wait still.
            for _, answer in self._waiting:
                answer.cancel()

    async def _answer(self) -> None:
        taken, self._waiting = self._waiting, []
        try:
            found = await self._read(list(dict.fromkeys(key for key, _ in taken)))
        except Exception as error:  # noqa: BLE001 - the callers' to handle
            for _, answer in taken:
                # Whoever gave up is not answered.
                if not answer.done():
                    answer.set_exception(error)
            return
        except BaseException:
            for _, answer in taken:
                answer.cancel()
            raise
        for key, answer in taken:
            if not answer.done():
                answer.set_result(found.get(key))
