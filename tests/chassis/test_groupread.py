"""chassis.groupread: many callers, one read."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from chassis.groupread import GroupRead
from chassis.refusals import DatabaseUnavailable


class Reads:
    """A read that remembers what it was asked for and waits while `open` is not set."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.fails = False

    async def read(self, keys: Sequence[int]) -> Mapping[int, str]:
        self.asked.append(list(keys))
        await self.open.wait()
        if self.fails:
            raise DatabaseUnavailable
        return {key: f"row {key}" for key in keys if key > 0}


async def test_a_lone_call_is_read_at_once() -> None:
    reads = Reads()
    group = GroupRead(reads.read)
    assert await group.get(7) == "row 7"
    assert await group.get(-7) is None
    assert reads.asked == [[7], [-7]]


async def test_calls_meanwhile_share_the_next_read() -> None:
    """What comes while one is under way is not answered by it, and the same key is asked once."""
    reads = Reads()
    reads.open.clear()
    group = GroupRead(reads.read)
    first = asyncio.create_task(group.get(1))
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(group.get(key)) for key in (1, 2, 2, -3)]
    await asyncio.sleep(0.01)
    reads.open.set()
    assert await first == "row 1"
    assert await asyncio.gather(*later) == ["row 1", "row 2", "row 2", None]
    assert reads.asked == [[1], [1, 2, -3]]


async def test_whoever_gave_up_keeps_nobody_from_an_answer() -> None:
    """Neither those of the same read nor those of the next one."""
    reads = Reads()
    reads.open.clear()
    group = GroupRead(reads.read)
    calls = [asyncio.create_task(group.get(key)) for key in (1, 1, 2)]
    await asyncio.sleep(0.01)
    later = asyncio.create_task(group.get(3))
    await asyncio.sleep(0.01)
    calls[0].cancel()
    await asyncio.sleep(0.01)
    reads.open.set()
    assert await asyncio.gather(*calls[1:], later) == ["row 1", "row 2", "row 3"]


async def test_a_failure_is_everybody_s_and_then_over() -> None:
    """Each caller gets the error, whoever gave up troubles nobody, and the next read goes on."""
    reads = Reads()
    reads.open.clear()
    reads.fails = True
    group = GroupRead(reads.read)
    calls = [asyncio.create_task(group.get(1)) for _ in range(3)]
    await asyncio.sleep(0.01)
    calls[0].cancel()
    reads.open.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers[1:]] == [DatabaseUnavailable] * 2
    reads.fails = False
    assert await group.get(1) == "row 1"


async def test_a_cancelled_read_cancels_its_callers() -> None:
    """At the end of the process nobody waits for an answer that never comes."""
    reads = Reads()
    reads.open.clear()
    group = GroupRead(reads.read)
    calls = [asyncio.create_task(group.get(1))]
    await asyncio.sleep(0.01)
    # One that waits for the next read.
    calls.append(asyncio.create_task(group.get(2)))
    await asyncio.sleep(0.01)
    assert group._reading is not None
    group._reading.cancel()
    for call in calls:
        with pytest.raises(asyncio.CancelledError):
            await call
