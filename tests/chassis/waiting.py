"""Waiting for something that another task or process does."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

SECONDS = 60.0


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Returns as soon as the condition holds; TimeoutError if it never does."""
    async with asyncio.timeout(SECONDS):
        while True:
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await asyncio.sleep(0.005)
