"""chassis.background: jobs beside a body, which end with it."""

import asyncio

import pytest

from chassis.background import background


async def test_who_is_cancelled_while_jobs_end_is_cancelled_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The jobs get to end all the same, and the cancellation is not lost."""
    monkeypatch.setattr("chassis.background.END_SECONDS", 60.0)
    ending, done = asyncio.Event(), asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ending.set()
            await _stubborn(0.3)
            done.set()

    async def owner() -> None:
        async with background(slow_to_end):
            await asyncio.sleep(0)

    task = asyncio.create_task(owner())
    await ending.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def _stubborn(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while (left := until - loop.time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue
