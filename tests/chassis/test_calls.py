"""chassis.calls: the call being answered."""

import asyncio
import time

import pytest

from chassis.callers import PUBLIC
from chassis.calls import Call, current_call, enter
from chassis.contract import methods_of
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
