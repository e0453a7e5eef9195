"""chassis.groupcommit: many callers, one flush."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from chassis.groupcommit import ATTEMPTS, RETRY_AFTER, GroupCommit
from chassis.refusals import Conflict, DatabaseUnavailable, InvalidRequest, Overloaded
from tests.chassis.flushes import POISON, Flushes


@contextlib.asynccontextmanager
async def running(
    flushes: Flushes, *, max_flush: int = 100, max_waiting: int = 1000
) -> AsyncIterator[GroupCommit[int, str]]:
    """Runs a queue in front of the flushes while the block runs."""
    queue = GroupCommit("test", flushes.flush, max_flush=max_flush, max_waiting=max_waiting)
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def submitted(queue: GroupCommit[int, str], *items: int) -> "asyncio.Task[Sequence[str]]":
    """Starts a caller and lets it submit."""

    async def call() -> Sequence[str]:
        return await queue.submit(items)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    return task


async def test_a_lone_call_is_flushed_at_once() -> None:
    """One call waits for nobody and gets its own result."""
    flushes = Flushes()
    async with running(flushes) as queue:
        assert await queue.submit([7]) == ["done 7"]
    assert flushes.batches == [[7]]


async def test_each_caller_gets_its_own_results_in_order() -> None:
    """However calls are batched, each gets the results of its own items in its own order."""
    flushes = Flushes()
    async with running(flushes, max_flush=16) as queue:
        calls = [range(start, start + 3) for start in range(0, 300, 3)]
        answers = await asyncio.gather(*(queue.submit(list(call)) for call in calls))
    for call, answer in zip(calls, answers, strict=True):
        assert list(answer) == [f"done {item}" for item in call]
    assert [item for batch in flushes.batches for item in batch] == list(range(300))


async def test_calls_gather_while_a_flush_runs() -> None:
    """What arrives during a flush goes into one flush after it, up to the bound of a flush."""
    flushes = Flushes()
    flushes.open.clear()
    async with running(flushes, max_flush=4) as queue:
        tasks = [await submitted(queue, 0)]
        await flushes.started.wait()
        tasks += [await submitted(queue, number) for number in range(1, 7)]
        flushes.open.set()
        await asyncio.gather(*tasks)
    assert flushes.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_callers_that_come_back_are_flushed_by_halves() -> None:
    """Flushes of many and of few do not take turns: each takes as much as the one before it."""
    flushes = Flushes()

    async def slowly(items: Sequence[int]) -> Sequence[str]:
        flushes.batches.append(list(items))
        # As long as it takes those of the last one to come back.
        for _ in range(10):
            await asyncio.sleep(0)
        return [""] * len(items)

    flushes.flush = slowly  # type: ignore[method-assign]
    async with running(flushes) as queue:

        async def call_again_and_again() -> None:
            for number in range(20):
                await queue.submit([number])

        await asyncio.gather(*(call_again_and_again() for _ in range(40)))
    sizes = [len(batch) for batch in flushes.batches]
    assert sizes == [20] * 40


async def test_a_submission_larger_than_a_flush_is_not_split() -> None:
    """One caller's items are written by one flush, however many they are."""
    flushes = Flushes()
    async with running(flushes, max_flush=2) as queue:
        await queue.submit([1, 2, 3])
    assert flushes.batches == [[1, 2, 3]]


async def test_a_full_queue_refuses_with_a_delay() -> None:
    """Past its bound the queue answers OVERLOADED and when to come back; then it takes more."""
    flushes = Flushes()
    flushes.open.clear()
    async with running(flushes, max_waiting=3) as queue:
        first = await submitted(queue, 0)
        await flushes.started.wait()
        waiting = [await submitted(queue, 1), await submitted(queue, 2, 3)]
        with pytest.raises(Overloaded) as refused:
            await queue.submit([4])
        assert refused.value.retry_after == RETRY_AFTER
        flushes.open.set()
        await asyncio.gather(first, *waiting)
        assert await queue.submit([4]) == ["done 4"]


async def test_items_count_by_their_size() -> None:
    """Where items have sizes, flushes and the queue are bounded by these."""
    flushes = Flushes()
    queue = GroupCommit("test", flushes.flush, max_flush=5, max_waiting=14, size=int)
    flushes.open.clear()
    task = asyncio.create_task(queue.run())
    first = await submitted(queue, 1)
    await flushes.started.wait()
    waiting = [await submitted(queue, size) for size in (2, 2, 6, 4)]
    with pytest.raises(Overloaded):
        await queue.submit([1])
    flushes.open.set()
    await asyncio.gather(first, *waiting)
    task.cancel()
    assert flushes.batches == [[1], [2, 2], [6], [4]]


async def test_a_poisonous_item_fails_alone() -> None:
    """An item no flush can write fails its own caller; all others are written."""
    flushes = Flushes()
    flushes.open.clear()
    async with running(flushes) as queue:
        tasks = [await submitted(queue, 0)]
        await flushes.started.wait()
        tasks += [await submitted(queue, item) for item in (1, 2, POISON, 4, 5, 6, 7)]
        flushes.open.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers.pop(3), ValueError)
    assert answers == [[f"done {item}"] for item in (0, 1, 2, 4, 5, 6, 7)]


async def test_a_conflict_is_tried_again() -> None:
    """A flush that collides is repeated; callers learn nothing of it."""
    flushes = Flushes()
    flushes.conflicts = ATTEMPTS - 1
    async with running(flushes) as queue:
        assert await queue.submit([1]) == ["done 1"]
    assert flushes.batches == [[1]] * ATTEMPTS


async def test_a_conflict_that_stays_is_answered() -> None:
    """After the last attempt callers read CONFLICT, and the queue goes on."""
    flushes = Flushes()
    flushes.conflicts = ATTEMPTS
    async with running(flushes) as queue:
        with pytest.raises(Conflict):
            await queue.submit([1])
        assert await queue.submit([2]) == ["done 2"]


async def test_a_refused_flush_refuses_all_its_callers() -> None:
    """A database that is gone is gone for everybody in the flush, and asked once."""
    flushes, asked = Flushes(), list[int]()

    async def refuse(items: Sequence[int]) -> Sequence[str]:
        asked.extend(items)
        raise DatabaseUnavailable

    flushes.flush = refuse  # type: ignore[method-assign]
    async with running(flushes) as queue:
        calls_made = (queue.submit([number]) for number in range(4))
        answers = await asyncio.gather(*calls_made, return_exceptions=True)
    assert all(isinstance(answer, DatabaseUnavailable) for answer in answers)
    assert asked == [0, 1, 2, 3]


async def test_a_refusal_that_one_item_earned_is_its_own() -> None:
    """A refusal that is not about the database as a whole does not reach the neighbours."""
    flushes = Flushes()
    write = flushes.flush

    async def refuse_three(items: Sequence[int]) -> Sequence[str]:
        if 3 in items:
            raise InvalidRequest
        return await write(items)

    flushes.flush = refuse_three  # type: ignore[method-assign]
    async with running(flushes) as queue:
        calls = (queue.submit([number]) for number in range(5))
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers.pop(3), InvalidRequest)
    assert answers == [[f"done {number}"] for number in (0, 1, 2, 4)]


async def test_who_gave_up_before_the_flush_is_not_written() -> None:
    """A cancelled call that still waits leaves no row and no place in the queue."""
    flushes = Flushes()
    flushes.open.clear()
    async with running(flushes, max_waiting=2) as queue:
        first = await submitted(queue, 0)
        await flushes.started.wait()
        gone, stays = await submitted(queue, 1), await submitted(queue, 2)
        gone.cancel()
        flushes.open.set()
        await asyncio.gather(first, stays)
        await queue.submit([3, 4])
    assert flushes.batches == [[0], [2], [3, 4]]
    assert gone.cancelled()


async def test_who_gives_up_during_the_flush_harms_nobody() -> None:
    """A call cancelled while its items are being written changes no other answer."""
    flushes = Flushes()
    flushes.open.clear()
    async with running(flushes) as queue:
        first = await submitted(queue, 0)
        await flushes.started.wait()
        gone, stays = await submitted(queue, 1), await submitted(queue, 2)
        flushes.started.clear()
        flushes.open.set()
        await flushes.started.wait()
        gone.cancel()
        assert [await first, await stays] == [["done 0"], ["done 2"]]
    assert flushes.batches == [[0], [1, 2]]


async def test_the_end_leaves_nobody_waiting() -> None:
    """When the queue ends, calls being flushed and calls that wait are cancelled, not forgotten."""
    flushes = Flushes()
    flushes.open.clear()
    async with running(flushes) as queue:
        tasks = [await submitted(queue, 0)]
        await flushes.started.wait()
        tasks.append(await submitted(queue, 1))
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 2
