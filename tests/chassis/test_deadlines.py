"""chassis.deadlines: work that ends with its time."""

import asyncio
import gc
import time
import weakref
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TypeVar

import pytest

from chassis.calls import DEADLINE_MARGIN
from chassis.deadlines import NEVER, STEP, Deadlines
from chassis.refusals import DeadlinePassed

T = TypeVar("T")
context: ContextVar[object] = ContextVar("context")


async def within(seconds: float, work: Awaitable[T]) -> T:
    with Deadlines().until(time.monotonic() + seconds):
        return await work


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.01])
async def test_work_ends_with_its_time(seconds: float) -> None:
    """DEADLINE_PASSED, and the task goes on as if nobody had cancelled it."""
    with pytest.raises(DeadlinePassed):
        await within(seconds, asyncio.sleep(60))
    assert current_task().cancelling() == 0
    await asyncio.sleep(0)


async def test_work_that_is_done_in_time_is_left_alone() -> None:
    """Its result, or its own failure, also a TimeoutError; no time at all is no limit."""
    for seconds in (60.0, NEVER):
        assert await within(seconds, asyncio.sleep(0, "done")) == "done"
        with pytest.raises(TimeoutError):
            await within(seconds, asyncio.wait_for(asyncio.sleep(60), 0.001))


async def test_who_is_cancelled_is_cancelled() -> None:
    """A caller that leaves, even at the very end of the time, is no deadline that passed."""
    for seconds in (60.0, 0.01):
        task = asyncio.create_task(within(seconds, asyncio.sleep(60)))
        await asyncio.sleep(0)
        if seconds < 1:
            # The timer and the caller in one turn of the loop.
            time.sleep(2 * seconds)  # noqa: ASYNC251
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_work_may_answer_the_end_of_its_time() -> None:
    """What it makes of the cancellation counts; nothing of it stays with the task."""

    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "late"
        return "never"

    assert await within(0.001, stubborn()) == "late"
    assert current_task().cancelling() == 0


async def test_nothing_is_kept_of_calls_that_are_over() -> None:
    """Whoever calls chooses the deadline: of one years away nothing may stay until then."""

    class Kept:
        pass

    deadlines, began, kept = Deadlines(), time.monotonic(), []

    async def call(seconds: float) -> None:
        local = Kept()
        context.set(local)
        kept.append(weakref.ref(local))
        with deadlines.until(began + seconds):
            await asyncio.sleep(0)

    for year in range(1, 20):
        # Each as a server has it, in a context of its own.
        await asyncio.create_task(call(year * 31e6))
    await asyncio.sleep(0)  # Until then the loop has the last one's context.
    gc.collect()
    assert deadlines._steps == {}
    assert [each() for each in kept] == [None] * len(kept)


def current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def test_each_call_ends_at_its_own_time() -> None:
    """Calls that share timers end no earlier than they may, and none of them ends another."""
    deadlines, began = Deadlines(), time.monotonic()

    async def work(seconds: float) -> float:
        try:
            with deadlines.until(began + seconds):
                await asyncio.sleep(60)
        except DeadlinePassed:
            return time.monotonic() - began
        raise AssertionError

    async def short() -> str:
        with deadlines.until(began + 0.05):
            await asyncio.sleep(0)
        # Its time comes while it does something else.
        await asyncio.sleep(0.1)
        return "whole"

    wanted = [0.001 * number for number in range(60)]
    *ended, done = await asyncio.gather(*map(work, wanted), short())
    assert done == "whole"
    for seconds, after in zip(wanted, ended, strict=True):
        assert isinstance(after, float)
        # The loop's clock counts milliseconds.
        assert after >= seconds - 0.001


def test_calls_end_before_their_clients_give_up() -> None:
    """What a shared timer adds to a call is within the margin that is left for its answer."""
    assert STEP < DEADLINE_MARGIN
