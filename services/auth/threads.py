"""
Work that takes a core for long, in a bounded thread pool of its own.

It never runs on the event loop, and what could not be ready before the call's
deadline is refused before it starts.
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from chassis.calls import current_call
from services.auth.errors import HashingBusy

T = TypeVar("T")
# Weight of the newest measurement in the running mean of a piece of work.
_SMOOTHING = 0.1
_NICENESS = 10


class BoundedThreads:
    """Threads with a bounded queue in front; the base of whoever has work for them."""

    def __init__(self, *, threads: int, queue: int, name: str, seconds: float) -> None:
        """`queue` bounds what waits or runs at once; `seconds` is what a piece takes at first."""
        self._threads = threads
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix=name, initializer=_yield_to_others
        )
        self._queue = queue
        self._waiting = 0
        self._seconds = seconds

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        expected = self._seconds * (1 + self._waiting / self._threads)
        if self._waiting >= self._queue or expected > _seconds_left():
            raise HashingBusy(retry_after=max(expected, 0.1))
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._timed, work)
        finally:
            self._waiting -= 1

    def _timed(self, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return work()
        finally:
            self._seconds += _SMOOTHING * (time.perf_counter() - started - self._seconds)


def _yield_to_others() -> None:
    """Lowers this thread's priority: whoever asks for anything else must not wait for its work."""
    # Elsewhere than on Linux a priority is the whole process's.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _seconds_left() -> float:
    try:
        return current_call().remaining()
    except LookupError:
        return float("inf")
