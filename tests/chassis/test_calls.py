"""chassis.calls: the call being answered."""

import asyncio
import time

import pytest

from chassis.callers import PUBLIC
from chassis.calls import Call, caller_address, current_call, enter
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
