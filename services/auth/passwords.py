"""
Passwords: argon2id (RFC 9106) in a bounded thread pool of its own.

Parameters are OWASP's 19 MiB, 2 passes, 1 lane. A hash takes tens of milliseconds
of a core: it never runs on the event loop, and one that could not be ready
before the call's deadline is refused before it starts.
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from chassis.calls import current_call
from services.auth.errors import HashingBusy

T = TypeVar("T")
# Weight of the newest measurement in the running mean of a hash's time.
_SMOOTHING = 0.1
_NICENESS = 10


class Passwords:
    """Hashes and verifies passwords on as many threads as there are cores."""

    def __init__(self, *, memory_kib: int, time_cost: int, queue: int) -> None:
        """`queue` bounds the passwords waiting or being hashed at once."""
        self._hasher = PasswordHasher(
            time_cost=time_cost, memory_cost=memory_kib, parallelism=1, hash_len=32, salt_len=16
        )
        self._threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        self._pool = ThreadPoolExecutor(
            self._threads, thread_name_prefix="argon2", initializer=_yield_to_others
        )
        self._queue = queue
        self._waiting = 0
        started = time.perf_counter()
        # Verified in place of a missing hash: an unknown address must cost what a known one does.
        self._dummy = self._hasher.hash("no account has this password")
        self._seconds = time.perf_counter() - started

    async def hash(self, password: str) -> str:
        """Returns a PHC string; HashingBusy if it cannot be ready in time."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password: str, hashed: str | None) -> bool:
        """Tells whether the password fits; costs the same when there is no hash."""
        return await self._run(lambda: self._fits(password, hashed))

    def outdated(self, hashed: str) -> bool:
        """Tells whether a hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(hashed)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fits(self, password: str, hashed: str | None) -> bool:
        try:
            return self._hasher.verify(hashed or self._dummy, password) and hashed is not None
        except (VerificationError, InvalidHashError):
            return False

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
    """Lowers this thread's priority: whoever asks for anything but a hash must not wait for one."""
    # Elsewhere than on Linux a priority is the whole process's.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _seconds_left() -> float:
    try:
        return current_call().remaining()
    except LookupError:
        return float("inf")
