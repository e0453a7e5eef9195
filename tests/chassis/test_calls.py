"""chassis.calls: the call being answered."""

import asyncio
import time

import pytest

from chassis.callers import PUBLIC
from chassis.calls import Call, caller_address, current_call, enter, within
from chassis.contract import methods_of
from chassis.refusals import DeadlinePassed
from tests.chassis.probe import CONTRACT, path

METHOD = methods_of([CONTRACT])[path("Open")]


def call_until(ends: float, request_id: str = "r") -> Call:
    return Call(METHOD, request_id, PUBLIC, ends)


async def test_there_is_no_call_outside_of_one() -> None:
    """Code that runs outside of a call finds none."""
    with pytest.raises(LookupError):
        current_call()


async def test_each_task_has_its_own_call() -> None:
    """Calls that run side by side never see each other, and what a call starts inherits it."""
    barrier = asyncio.Barrier(10)

    async def child() -> str:
        return current_call().request_id

    async def answer(request_id: str) -> str:
        enter(call_until(0, request_id))
        await barrier.wait()
        return await asyncio.create_task(child())

    names = [str(number) for number in range(10)]
    assert await asyncio.gather(*map(answer, names)) == names
    with pytest.raises(LookupError):
        current_call()


def test_the_remaining_time_runs_out() -> None:
    """What is left of a call is counted to its end and below zero after it."""
    now = time.monotonic()
    assert 50 < call_until(now + 60).remaining() <= 60
    assert call_until(now - 1).remaining() < 0


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("ipv4:203.0.113.9:4711", "", "203.0.113.9"),
        ("ipv4:8.8.8.8:4711", "198.51.100.1", "8.8.8.8"),
        ("ipv4:127.0.0.1:4711", "198.51.100.1", "198.51.100.1"),
        ("ipv4:10.1.2.3:4711", "192.0.2.66, 198.51.100.1", "198.51.100.1"),
        ("ipv6:[::1]:4711", "2001:db8::1", "2001:db8::1"),
        ("ipv6:%5B::1%5D:4711", "", "::1"),
        ("ipv6:[2600::7]:4711", "198.51.100.1", "2600::7"),
        ("ipv6:[::ffff:8.8.8.8]:1", "198.51.100.1", "8.8.8.8"),
        ("ipv4:127.0.0.1:4711", "nonsense", "127.0.0.1"),
        ("127.0.0.1:4711", "", "127.0.0.1"),
        ("unix:/tmp/socket", "", None),
        ("", "", None),
    ],
)
def test_where_a_caller_is(peer: str, forwarded: str, address: str | None) -> None:
    """What a proxy says is believed of our own network only, and only its last hop."""
    assert caller_address(peer, {"x-forwarded-for": forwarded}) == address


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.01])
async def test_work_ends_with_its_time(seconds: float) -> None:
    """DEADLINE_PASSED, and the task goes on as if nobody had cancelled it."""
    with pytest.raises(DeadlinePassed):
        await within(seconds, asyncio.sleep(60))
    assert current_task().cancelling() == 0
    await asyncio.sleep(0)


async def test_work_that_is_done_in_time_is_left_alone() -> None:
    """Its result, or its own failure, also a TimeoutError; no time at all is no limit."""
    for seconds in (60.0, float("inf")):
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


def current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task
