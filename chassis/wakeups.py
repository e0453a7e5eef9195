"""
Wake-ups over Redis: a message says only that there is something to read, never what.

Losing one costs a few seconds until the next poll, so Redis may be flushed, slow
or gone at any moment.
"""

import asyncio
import contextlib
from collections.abc import Callable

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

REVOCATIONS = "finity:revocations"
# A frozen Redis may hold up a logout for so many seconds, not longer.
ANNOUNCE_SECONDS = 0.25
RECONNECT_SECONDS = 1.0
_log = structlog.get_logger()


async def announce(redis: Redis) -> None:
    """Wakes every process that listens; gives up quietly when Redis does not answer."""
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(ANNOUNCE_SECONDS):
            await redis.publish(REVOCATIONS, b"")


async def listen(redis: Redis, wake: Callable[[], None]) -> None:
    """Calls `wake` at every message, and after every reconnection, until cancelled."""
    while True:
        try:
            async with redis.pubsub(ignore_subscribe_messages=True) as channel:
                await channel.subscribe(REVOCATIONS)
                wake()
                async for _ in channel.listen():
                    wake()
        except (RedisError, OSError, TimeoutError, EOFError, ValueError) as error:
            _log.warning("redis is gone; revocations are polled", error=type(error).__name__)
        await asyncio.sleep(RECONNECT_SECONDS)
