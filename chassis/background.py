"""Jobs that run beside a server for as long as it does."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import structlog
from prometheus_client import Counter

RESTART_SECONDS = 1.0
END_SECONDS = 3.0
JOB_FAILURES = Counter("finity_background_failures_total", "Background jobs that failed.")
_log = structlog.get_logger()


@contextlib.asynccontextmanager
async def background(*jobs: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Runs endless jobs beside the body and ends them with it; one that fails starts again."""
    tasks = [asyncio.create_task(_forever(job)) for job in jobs]
    try:
        yield
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    pending: set[asyncio.Task[None]] = set(tasks)
    deadline = time.monotonic() + END_SECONDS
    cancelled = False
    # A call under way may answer a cancellation as its own failure, so once is not enough; what
    # hangs all the same must not keep the process from ending. A cancellation that comes meanwhile
    # is passed on afterwards.
    while pending and time.monotonic() < deadline:
        for task in pending:
            task.cancel()
        try:
            _, pending = await asyncio.wait(pending, timeout=0.1)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def _forever(job: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        try:
            await job()
        except Exception as error:  # noqa: BLE001 - whatever it was, the others must go on
            JOB_FAILURES.inc()
            _log.error("background job failed; it starts again", exc_info=error)
        await asyncio.sleep(RESTART_SECONDS)
