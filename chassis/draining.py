"""
What a server that drains still takes: nothing new.

A new call is refused with Stopping. A stream of requests, which would otherwise be open until
the drain is over, ends with it at the next request its handler asks for: what came in before
can still be answered.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

from chassis.refusals import Stopping

T = TypeVar("T")


class Draining:
    """Whether the server takes nothing new any more."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    def begin(self) -> None:
        """From now on every new call is refused and every stream of requests is over."""
        self._begun.set()

    def refuse_new(self) -> None:
        """Stopping once the drain has begun."""
        if self._begun.is_set():
            raise Stopping

    async def until_then(self, items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
        """Yields the items until there are no more; Stopping if the drain begins before that."""
        items = aiter(items)
        begun = asyncio.ensure_future(self._begun.wait())
        try:
            while not begun.done():
                upcoming = asyncio.ensure_future(anext(items, None))
                try:
                    await asyncio.wait({upcoming, begun}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not upcoming.done():
                        upcoming.cancel()
                if not upcoming.done():
                    break
                item = upcoming.result()
                if item is None:
                    return
                yield item
            raise Stopping
        finally:
            begun.cancel()
