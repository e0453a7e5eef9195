"""How busy the event loop is, and that processes rest while it is."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from finity.auth.v1 import auth_pb2

from chassis.callers import PUBLIC
from chassis.calls import Call, enter
from chassis.contract import methods_of
from services.auth import processes
from services.auth.busyness import Busyness
from services.auth.processes import BoundedProcesses
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
        self.busyness = Busyness(0.5, lambda: self.used, lambda: self.passed)

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


@pytest.fixture
def endless_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who rests once does so until the test is over."""
    monkeypatch.setattr(processes, "LONGEST_REST_SECONDS", 1e6)
    monkeypatch.setattr(processes, "RESTS", 1e9)


async def within(pool: BoundedProcesses, seconds: float) -> str:
    """Asks as a call that ends in so many seconds; in a task of its own, for a call is a task's."""
    enter(Call(LOGIN, "test", PUBLIC, time.monotonic() + seconds))
    return await reason_of(pool._run(pieces.echo, 1))


def test_busy_is_more_than_its_share(clocks: Clocks) -> None:
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
    busyness = Busyness(0.5)
    while not busyness.high():
        pass
    while busyness.high():  # noqa: ASYNC110 - there is no event of rest
        await asyncio.sleep(0.01)
    await asyncio.to_thread(hashlib.pbkdf2_hmac, "sha256", b"", b"", 1_000_000)
    assert not busyness.high()


@pytest.mark.usefixtures("endless_rests")
async def test_a_busy_loop_lets_them_rest(pool: BoundedProcesses, clocks: Clocks) -> None:
    """After its piece a process gets no other one until its rest is over."""
    clocks.go_on(share=0.9)
    for number in range(2):
        assert await pool._run(pieces.echo, number) == number
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pool._run(pieces.echo, 2), 0.3)


async def test_a_rest_ends(pool: BoundedProcesses, clocks: Clocks) -> None:
    """However busy the loop is, everybody is answered in the end."""
    clocks.go_on(share=0.9)
    asked = (pool._run(pieces.echo, number) for number in range(40))
    assert await asyncio.gather(*asked) == [*range(40)]


@pytest.mark.usefixtures("endless_rests")
async def test_nobody_rests_while_the_loop_has_time(pool: BoundedProcesses, clocks: Clocks) -> None:
    """Up to half of a core no process rests."""
    clocks.go_on(share=0.4)
    asked = (pool._run(pieces.echo, number) for number in range(40))
    assert await asyncio.gather(*asked) == [*range(40)]


async def test_a_rest_is_never_long(
    pool: BoundedProcesses, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a piece took, its process is there again before others give up."""
    monkeypatch.setattr(processes, "RESTS", 1e9)
    clocks.go_on(share=0.9)
    asked = (pool._run(pieces.echo, number) for number in range(6))
    assert await asyncio.gather(*asked) == [*range(6)]


@pytest.mark.usefixtures("endless_rests")
async def test_who_rests_is_in_the_way_too(pool: BoundedProcesses, clocks: Clocks) -> None:
    """With both processes at rest nothing is begun that can only just be ready without."""
    clocks.go_on(share=0.9)
    for number in range(2):
        await pool._run(pieces.echo, number)
    pool._seconds = 500.0
    assert await asyncio.create_task(within(pool, 600.0)) == "HASHING_BUSY"


async def test_a_long_piece_is_not_expected_to_cost_a_long_rest(
    pool: BoundedProcesses, clocks: Clocks, tmp_path: Path
) -> None:
    """What a rest is at most is in the estimate too: nobody is refused for more."""
    gate = Gate(tmp_path)
    held = asyncio.create_task(pool._run(gate.wait))
    while not gate.begun():  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(0.005)
    clocks.go_on(share=0.9)
    pool._seconds = 500.0
    # 750 seconds and a rest of less than one.
    assert await asyncio.create_task(within(pool, 1000.0)) == ""
    gate.open()
    await held


async def test_who_is_late_when_their_turn_comes_is_not_begun(
    clocks: Clocks, tmp_path: Path
) -> None:
    """The queue was slower than it looked: what cannot be ready any more costs nobody anything."""
    pool = BoundedProcesses(count=1, queue=10, seconds=0.0, busyness=clocks.busyness)
    gate = Gate(tmp_path)
    held = asyncio.create_task(pool._run(gate.wait))
    late = asyncio.create_task(within(pool, 100.0))
    while not gate.begun():  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(0.005)
    pool._seconds = 1000.0
    gate.open()
    await held
    assert await late == "HASHING_BUSY"
    assert await pool._run(pieces.echo, 1) == 1
    pool.close()


@pytest.mark.usefixtures("endless_rests")
async def test_what_failed_is_not_rested_from(pool: BoundedProcesses, clocks: Clocks) -> None:
    """A process that died is replaced at once: whoever comes next needs no less than before."""
    clocks.go_on(share=0.9)
    for _ in range(4):
        assert await reason_of(pool._run(pieces.die)) == "HASHING_BUSY"
    assert await pool._run(pieces.echo, 1) == 1


@pytest.mark.usefixtures("endless_rests")
async def test_a_busy_start_starts_all_of_them(clocks: Clocks) -> None:
    """A service that starts is busy; its processes are there and warm all the same."""
    pool = BoundedProcesses(count=3, queue=1, seconds=0.0, busyness=clocks.busyness)
    clocks.go_on(share=1.0)
    await pool._start(os.getpid)
    assert len({child._process.pid for child in pool._children if child._process}) == 3
    pool.close()


@pytest.mark.usefixtures("endless_rests")
@pytest.mark.parametrize(("share", "reason"), [(0.1, ""), (0.9, "HASHING_BUSY")])
async def test_a_busy_loop_refuses_what_it_makes_late(
    pool: BoundedProcesses, clocks: Clocks, tmp_path: Path, share: float, reason: str
) -> None:
    """What would be ready in time if nobody rested, and is not, is not begun."""
    gate = Gate(tmp_path)
    held = asyncio.create_task(pool._run(gate.wait))
    while not gate.begun():  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(0.005)
    clocks.go_on(share=share)
    pool._seconds = 500.0
    # It takes 750 seconds if nobody rests.
    assert await asyncio.create_task(within(pool, 1000.0)) == reason
    gate.open()
    await held
