"""Who works when: in order, and one fewer at once while the event loop is busy."""

import asyncio
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from finity.auth.v1 import auth_pb2

from chassis.callers import PUBLIC
from chassis.calls import Call, enter
from chassis.contract import methods_of
from services.auth.processes import BoundedProcesses
from services.auth.turns import Busyness, Turns
from tests.auth import pieces
from tests.auth.pieces import Gate
from tests.factories import reason_of

LOGIN = methods_of([auth_pb2.DESCRIPTOR.services_by_name["AuthService"]])[
    "/finity.auth.v1.AuthService/Login"
]


class Clocks:
    """What an event loop's thread has used of how many seconds, as a test says."""

    def __init__(self) -> None:
        self.used = self.passed = 100.0
        self.busyness = Busyness(lambda: self.used, lambda: self.passed)

    def go_on(self, *, share: float, seconds: float = 1.0) -> None:
        self.used += share * seconds
        self.passed += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
async def pool(clocks: Clocks) -> AsyncIterator[BoundedProcesses]:
    """Two processes, of a loop that is as busy as the clocks say."""
    pool = BoundedProcesses(count=2, queue=1000, seconds=0.0, busyness=clocks.busyness)
    yield pool
    pool.close()


async def begun(*gates: Gate) -> None:
    """Comes back once all of them hold work; the test's timeout says that they never do."""
    while not all(gate.begun() for gate in gates):  # noqa: ASYNC110 - other processes set no events
        await asyncio.sleep(0.005)


def gates_in(folder: Path, count: int) -> list[Gate]:
    folders = [folder / str(number) for number in range(count)]
    for each in folders:
        each.mkdir()
    return [Gate(each) for each in folders]


async def settled() -> None:
    """Everybody has gone on as far as they can without an answer."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_busy_is_more_than_half_of_a_core(clocks: Clocks) -> None:
    """Up to that share of what passed since the last look the loop is not busy."""
    assert not clocks.busyness.high()
    for share, high in ((0.49, False), (0.51, True), (0.8, True), (0.2, False), (0.0, False)):
        clocks.go_on(share=share, seconds=0.2)
        assert clocks.busyness.high() is high


def test_a_burst_is_not_busy(clocks: Clocks) -> None:
    """Nothing is said of less than a tenth of a second, by however many looks."""
    for _ in range(9):
        clocks.go_on(share=1.0, seconds=0.01)
        assert not clocks.busyness.high()
    clocks.go_on(share=0.0, seconds=0.2)
    assert not clocks.busyness.high()
    clocks.go_on(share=1.0, seconds=0.15)
    assert clocks.busyness.high()
    clocks.go_on(share=0.0, seconds=0.09)
    assert clocks.busyness.high()


def test_a_quiet_hour_is_not_busy(clocks: Clocks) -> None:
    """Where nobody looked for long, all of that time counts."""
    clocks.go_on(share=1.0)
    assert clocks.busyness.high()
    clocks.go_on(share=0.1, seconds=3600.0)
    clocks.go_on(share=1.0, seconds=0.2)
    assert not clocks.busyness.high()


async def test_the_clocks_are_those_of_the_loop_s_thread() -> None:
    """By default this thread's work makes it busy; rest and what other threads do does not."""
    busyness = Busyness()
    while not busyness.high():
        pass
    while busyness.high():  # noqa: ASYNC110 - there is no event of rest
        await asyncio.sleep(0.01)
    await asyncio.to_thread(hashlib.pbkdf2_hmac, "sha256", b"", b"", 1_000_000)
    assert not busyness.high()


async def test_a_turn_that_comes_too_late_is_handed_on() -> None:
    """Whoever gives up at the moment of their turn leaves it to the next."""
    turns = Turns(lambda: 1)
    await turns.take()
    late, following = (asyncio.create_task(turns.take()) for _ in range(2))
    await settled()
    turns.give_back()
    late.cancel()
    await settled()
    assert late.cancelled()
    assert following.done()
    turns.give_back()
    assert turns._working == 0


async def test_who_gives_up_waiting_is_forgotten() -> None:
    """They are in nobody's way, and no longer in memory, though nobody finishes."""
    turns = Turns(lambda: 1)
    await turns.take()
    gone, following = (asyncio.create_task(turns.take()) for _ in range(2))
    await settled()
    gone.cancel()
    await settled()
    assert len(turns._waiting) == 1
    gone_too = asyncio.create_task(turns.take())
    await settled()
    gone_too.cancel()
    following.cancel()
    turns.give_back()  # Finds both of them, before they could leave.
    await settled()
    assert gone_too.cancelled()
    assert following.cancelled()
    assert (turns._working, len(turns._waiting)) == (0, 0)


async def test_the_limit_may_change_while_some_wait() -> None:
    """A lower one ends no turn, a higher one is for those who wait, in their order."""
    limit, served = [3], list[int]()
    turns = Turns(lambda: limit[0])

    async def serve(number: int) -> None:
        await turns.take()
        served.append(number)

    waiting = [asyncio.create_task(serve(number)) for number in range(8)]
    await settled()
    limit[0] = 1
    for working, expected in ((2, 3), (1, 3), (1, 4)):
        turns.give_back()
        await settled()
        assert (turns._working, served) == (working, [*range(expected)])
    limit[0] = 2
    waiting.append(asyncio.create_task(serve(8)))
    await settled()
    assert (turns._working, served) == (2, [*range(5)])
    for _ in range(6):
        turns.give_back()
        await settled()
    assert (turns._working, served) == (0, [*range(9)])
    await asyncio.gather(*waiting)


async def test_a_busy_loop_keeps_one_core_for_itself(
    pool: BoundedProcesses, clocks: Clocks, tmp_path: Path
) -> None:
    """One process works at a time, and everybody is answered."""
    notes = tmp_path / "notes"
    clocks.go_on(share=0.9)
    await asyncio.gather(*(pool._run(pieces.span, notes) for _ in range(20)))
    assert notes.read_text().splitlines() == ["begin", "end"] * 20
    assert sum(child._process is not None for child in pool._children) == 1


async def test_all_work_while_the_loop_has_time(
    pool: BoundedProcesses, clocks: Clocks, tmp_path: Path
) -> None:
    """Each core has work, and no more than that is begun."""
    gates = gates_in(tmp_path, 3)
    clocks.go_on(share=0.3)
    held = [asyncio.create_task(pool._run(gate.wait, "answered")) for gate in gates]
    await begun(*gates[:2])
    assert len(pool._exchanges) == 2
    for gate in gates:
        gate.open()
    assert await asyncio.gather(*held) == ["answered"] * 3


async def test_busyness_comes_and_goes(
    pool: BoundedProcesses, clocks: Clocks, tmp_path: Path
) -> None:
    """What runs goes on; of those who wait the first is next, once the loop has time again."""
    gates = gates_in(tmp_path, 5)
    held = [asyncio.create_task(pool._run(gate.wait)) for gate in gates[:4]]
    await begun(*gates[:2])
    clocks.go_on(share=0.9)
    gates[0].open()
    await held[0]
    await settled()
    assert len(pool._exchanges) == 1
    clocks.go_on(share=0.1)
    held.append(asyncio.create_task(pool._run(gates[4].wait)))
    await begun(gates[2])
    assert not gates[4].begun()
    for gate in gates:
        gate.open()
    await asyncio.gather(*held)


async def test_nobody_is_left_waiting_when_the_loop_was_busy(
    pool: BoundedProcesses, clocks: Clocks, tmp_path: Path
) -> None:
    """Nobody comes who would look at the clocks: the end of a piece of work does."""
    gates = gates_in(tmp_path, 3)
    clocks.go_on(share=0.9)
    held = [asyncio.create_task(pool._run(gate.wait)) for gate in gates]
    await begun(gates[0])
    clocks.go_on(share=0.0)
    gates[0].open()
    await begun(*gates[1:])
    for gate in gates:
        gate.open()
    await asyncio.gather(*held)


async def test_giving_up_costs_no_turn(pool: BoundedProcesses, clocks: Clocks) -> None:
    """However many give up at whatever moment of a busy loop, everybody else is answered."""
    clocks.go_on(share=0.9)
    choose = random.Random(1)  # noqa: S311 - any will do
    asked = [asyncio.create_task(pool._run(pieces.echo, number)) for number in range(300)]
    for task in choose.sample(asked, 150):
        for _ in range(choose.randrange(4)):
            await asyncio.sleep(0)
        task.cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    given = [(number, answer) for number, answer in enumerate(answers) if isinstance(answer, int)]
    assert len(given) >= 150
    assert all(number == answer for number, answer in given)
    await pool._run(pieces.echo, 1)
    await settled()
    assert (pool._turns._working, len(pool._idle)) == (0, 2)


async def test_a_busy_start_starts_all_of_them(clocks: Clocks) -> None:
    """A service that starts is busy; its processes are there and warm all the same."""
    pool = BoundedProcesses(count=3, queue=1, seconds=0.0, busyness=clocks.busyness)
    clocks.go_on(share=1.0)
    await pool._start(os.getpid)
    assert len({child._process.pid for child in pool._children if child._process}) == 3
    assert pool._at_once() == 2
    pool.close()


async def test_one_process_works_however_busy(clocks: Clocks) -> None:
    """Where there is one only, nothing is held back."""
    pool = BoundedProcesses(count=1, queue=1, seconds=0.0, busyness=clocks.busyness)
    clocks.go_on(share=1.0)
    assert await pool._run(pieces.echo, 1) == 1
    pool.close()


@pytest.mark.parametrize(("share", "reason"), [(0.1, ""), (0.9, "HASHING_BUSY")])
async def test_a_busy_loop_refuses_what_it_makes_late(
    pool: BoundedProcesses, clocks: Clocks, tmp_path: Path, share: float, reason: str
) -> None:
    """What two processes would do in time, and one would not, is not begun."""
    (gate,) = gates_in(tmp_path, 1)
    held = asyncio.create_task(pool._run(gate.wait))
    await begun(gate)
    clocks.go_on(share=share)
    pool._seconds = 500.0

    async def within(seconds: float) -> str:
        enter(Call(LOGIN, "test", PUBLIC, time.monotonic() + seconds))
        return await reason_of(pool._run(pieces.echo, 1))

    # In a task of its own: the current call is the task's. Two need 750 seconds, one 1,000.
    assert await asyncio.create_task(within(900.0)) == reason
    gate.open()
    await held
