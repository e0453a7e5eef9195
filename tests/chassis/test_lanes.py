"""chassis.lanes: batches side by side, single calls together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from chassis.groupcommit import GroupCommit
from chassis.lanes import FEW, Lanes
from chassis.refusals import Overloaded
from tests.chassis.flushes import Flushes

MANY = 2 * (FEW + 1)
EVENS, ODDS = range(0, MANY, 2), range(1, MANY, 2)


@contextlib.asynccontextmanager
async def lanes(
    flushes: Sequence[Flushes], *, max_waiting: int = 1000
) -> AsyncIterator[Lanes[int, str]]:
    """Runs a lane in front of each; a number goes to the lane of its remainder."""
    queues = [
        GroupCommit("test", each.flush, max_flush=100, max_waiting=max_waiting) for each in flushes
    ]
    beside = Lanes(queues, key=lambda item: item)
    task = asyncio.create_task(beside.run())
    try:
        yield beside
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_small_submissions_share_a_lane() -> None:
    """However many there are, one lane writes them all, and each gets its own results."""
    first, second = Flushes(), Flushes()
    async with lanes([first, second]) as beside:
        calls = [range(at, at + FEW) for at in range(5)]
        answers = await asyncio.gather(*(beside.submit(call) for call in calls))
    assert answers == [[f"done {item}" for item in call] for call in calls]
    assert second.batches == []


async def test_a_batch_is_spread_and_whatever_comes_with_it() -> None:
    """While another lane is at work, items of one key are of one lane; then all share one again."""
    even, odd = Flushes(), Flushes()
    async with lanes([even, odd]) as beside:
        answers = await asyncio.gather(
            *(beside.submit(range(at, at + MANY)) for at in range(0, 500, MANY)),
            *(beside.submit([item]) for item in range(600, 620)),
        )
        assert await beside.submit([1]) == ["done 1"]
    assert [text for answer in answers for text in answer] == [
        f"done {item}" for item in (*range(-(-500 // MANY) * MANY), *range(600, 620))
    ]
    assert {item % 2 for batch in odd.batches for item in batch} == {1}
    assert even.batches.pop() == [1]
    assert {item % 2 for batch in even.batches for item in batch} == {0}


async def test_a_lane_waits_for_no_other() -> None:
    """While one lane's flush is held up the others go on."""
    free, held = Flushes(), Flushes()
    held.open.clear()
    async with lanes([free, held]) as beside:
        stuck = asyncio.ensure_future(beside.submit(ODDS))
        await held.started.wait()
        assert await beside.submit([4]) == ["done 4"]
        assert await beside.submit(EVENS) == [f"done {item}" for item in EVENS]
        held.open.set()
        assert await stuck == [f"done {item}" for item in ODDS]


async def test_a_full_lane_refuses() -> None:
    """Overloaded as soon as one lane has no room for its part; no other lane gets its own."""
    full, free = Flushes(), Flushes()
    async with lanes([full, free], max_waiting=FEW) as beside:
        for items in ([1, *EVENS], [*EVENS, 1]):
            with pytest.raises(Overloaded):
                await beside.submit(items)
        assert await beside.submit([0, 3]) == ["done 0", "done 3"]
    assert full.batches == [[0, 3]]
    assert free.batches == []
