"""Work in child processes: bounded, in order, given up, killed and closed."""

import asyncio
import gc
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from services.auth import hashing, processes, scoring
from services.auth.child import NICENESS, SLICE_NANOSECONDS
from services.auth.errors import HashingBusy
from services.auth.processes import BoundedProcesses
from suite.stale import started_at
from tests.auth import pieces
from tests.auth.pieces import Gate
from tests.factories import at_once
from tests.running import PASSWORD

KERNEL = re.match(r"(\d+)[.](\d+)", os.uname().release)
# Older kernels have no slices of a process' own, on other machines the child does not ask.
SLICED = (
    sys.platform == "linux"
    and pieces.SCHED_GETATTR is not None
    and KERNEL is not None
    and (int(KERNEL[1]), int(KERNEL[2])) >= (6, 12)
)
PARENT = """
import asyncio, os, pathlib, sys
from services.auth.processes import BoundedProcesses
from tests.auth.pieces import Gate

async def main(folder):
    pool = BoundedProcesses(count=3, queue=10, seconds=0.0)
    gate = Gate(pathlib.Path(folder))
    await pool._start(os.getpid)
    held = asyncio.create_task(pool._run(gate.wait))
    while not gate.begun():
        await asyncio.sleep(0.005)
    print(*(child._process.pid for child in pool._children), flush=True)
    await held

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is ended is gone when that returns, however late a core is there for it."""
    monkeypatch.setattr(processes, "_DYING_SECONDS", 60.0)


@pytest.fixture
async def pool() -> AsyncIterator[BoundedProcesses]:
    """One process; three may wait or run."""
    pool = BoundedProcesses(count=1, queue=3, seconds=0.0)
    yield pool
    pool.close()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


async def until(condition: Callable[[], bool]) -> None:
    """Comes back once it is so; the test's timeout says that it never was."""
    while not condition():  # noqa: ASYNC110 - other processes set no events
        await asyncio.sleep(0.005)


def pids(pool: BoundedProcesses) -> list[int]:
    return [child._process.pid for child in pool._children if child._process is not None]


async def test_work_is_done_by_a_process_that_stays(pool: BoundedProcesses) -> None:
    """It runs elsewhere, and the next piece in the same place; nothing starts before it has to."""
    assert pids(pool) == []
    there = await pool._run(os.getpid)
    assert there != os.getpid()
    assert await pool._run(os.getpid) == there
    assert pids(pool) == [there]
    assert await pool._run(os.getsid, 0) == there


def test_uvloop_drives_it_too() -> None:
    """On the loop that serves: answers, a child that dies, and an end without leftovers."""

    async def main() -> list[int]:
        pool = BoundedProcesses(count=2, queue=100, seconds=0.0)
        await pool._start(os.getpid)
        started = pids(pool)
        assert await asyncio.gather(*(pool._run(pieces.echo, n) for n in range(50))) == [*range(50)]
        with pytest.raises(HashingBusy):
            await pool._run(pieces.die)
        assert await pool._run(pieces.echo, 1) == 1
        started += pids(pool)
        pool.close()
        return started

    started = uvloop.run(main())
    assert len(set(started)) == 3
    assert [started_at(pid) for pid in started] == [None] * len(started)


async def test_starting_starts_all_of_them() -> None:
    """After it every process is there, and has imported what its work needs; nothing heavy."""
    pool = BoundedProcesses(count=3, queue=1, seconds=0.0)
    await pool._start(hashing.make, PASSWORD, 1, 8192)
    assert len(set(pids(pool))) == 3
    imported = await pool._run(pieces.modules)
    assert {"nacl", "argon2", "bcrypt"} <= imported
    assert not imported & {"zxcvbn", "grpc", "google", "asyncpg", "structlog", "asyncio", "chassis"}
    await pool._run(scoring.estimate, "hunter2", "")
    pool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="priorities are lowered on Linux only")
async def test_work_yields_to_everything_else(pool: BoundedProcesses) -> None:
    """The process is nice and of the policy for long work, and so is its session as a whole."""
    niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    await pool._run(pieces.echo, 1)
    nice, policy, group = await pool._run(pieces.priority)
    assert (nice, policy) == (niceness, os.SCHED_BATCH)
    # One session of the machine may do so in a tenth of a second: it may take more than one piece.
    while group and not group.endswith(f" nice {NICENESS}\n"):
        await asyncio.sleep(0.05)
        group = (await pool._run(pieces.priority))[2]


@pytest.mark.skipif(not SLICED, reason="slices may be chosen on Linux 6.12 and later only")
async def test_work_gives_its_core_back_soon(pool: BoundedProcesses) -> None:
    """The process has the shortest time slice there is, beside its policy and niceness."""
    niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    await pool._run(pieces.echo, 1)
    there = await pool._run(pieces.time_slice)
    assert there == (os.SCHED_BATCH, niceness, SLICE_NANOSECONDS)


async def test_too_many_are_refused(pool: BoundedProcesses, gate: Gate) -> None:
    """More than may wait are HASHING_BUSY at once, with a delay; then there is room again."""
    held = [asyncio.create_task(pool._run(gate.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    refusals = await at_once(10, lambda n: pool._run(pieces.echo, n))
    assert all(isinstance(refusal, HashingBusy) for refusal in refusals)
    assert all(refusal.retry_after > 0 for refusal in refusals)
    gate.open()
    await asyncio.gather(*held)
    assert await pool._run(pieces.echo, 7) == 7


async def test_who_came_first_is_served_first(tmp_path: Path) -> None:
    """The queue is in order, whoever comes while it moves."""
    pool, notes = BoundedProcesses(count=1, queue=100, seconds=0.0), tmp_path / "notes"

    async def twice(number: int) -> None:
        await pool._run(pieces.note, notes, f"first {number}")
        await pool._run(pieces.note, notes, f"second {number}")

    await asyncio.gather(*map(twice, range(10)))
    expected = [f"{turn} {number}" for turn in ("first", "second") for number in range(10)]
    assert notes.read_text().splitlines() == expected
    pool.close()


async def test_who_gives_up_waiting_leaves_no_work(
    pool: BoundedProcesses, gate: Gate, tmp_path: Path
) -> None:
    """What waits and is given up makes room at once and is never begun."""
    held = asyncio.create_task(pool._run(gate.wait, "held"))
    await until(gate.begun)
    waiting = [asyncio.create_task(pool._run(pieces.note, tmp_path / "n", "")) for _ in range(2)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    after = [asyncio.create_task(pool._run(pieces.echo, number)) for number in range(2)]
    gate.open()
    assert await held == "held"
    assert await asyncio.gather(*after) == [0, 1]
    assert not (tmp_path / "n").exists()


async def test_who_gives_up_running_makes_room(pool: BoundedProcesses, gate: Gate) -> None:
    """The process finishes what nobody waits for, and then answers others with their own."""
    held = asyncio.create_task(pool._run(gate.wait, "nobody's"))
    await until(gate.begun)
    there = pids(pool)
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    after = [asyncio.create_task(pool._run(pieces.echo, number)) for number in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in after)
    gate.open()
    assert await asyncio.gather(*after) == [0, 1, 2]
    assert pids(pool) == there


async def test_answers_belong_to_their_questions() -> None:
    """Whoever gives up at whatever moment, everybody else gets the answer to what they asked."""
    pool, choose = BoundedProcesses(count=2, queue=1000, seconds=0.0), random.Random(1)  # noqa: S311 - any will do
    await pool._start(os.getpid)
    there = set(pids(pool))
    asked = [asyncio.create_task(pool._run(pieces.echo, number)) for number in range(600)]
    for task in choose.sample(asked, 300):
        for _ in range(choose.randrange(4)):
            await asyncio.sleep(0)
        task.cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    given = [(number, answer) for number, answer in enumerate(answers) if isinstance(answer, int)]
    assert len(given) >= 300
    assert all(number == answer for number, answer in given)
    assert any(isinstance(answer, asyncio.CancelledError) for answer in answers)
    assert pool._waiting == 0
    assert set(pids(pool)) == there
    pool.close()


async def test_a_killed_child_is_replaced(pool: BoundedProcesses, gate: Gate) -> None:
    """Whoever waited for it may come again; whoever comes next notices nothing."""
    held = asyncio.create_task(pool._run(gate.wait))
    await until(gate.begun)
    (there,) = pids(pool)
    after = asyncio.create_task(pool._run(os.getpid))
    await asyncio.sleep(0)
    os.kill(there, signal.SIGKILL)
    with pytest.raises(HashingBusy) as refusal:
        await held
    assert refusal.value.retry_after is not None
    assert await after not in {there, os.getpid()}
    assert started_at(there) is None


async def test_a_child_killed_while_idle_is_nobody_s_loss(pool: BoundedProcesses) -> None:
    """The next work starts another one."""
    there = await pool._run(os.getpid)
    os.kill(there, signal.SIGKILL)
    await until(lambda: started_at(there) is None)
    assert await pool._run(os.getpid) not in {there, os.getpid()}


async def test_a_hung_child_is_given_up(
    pool: BoundedProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that answers no more holds its place for a while only."""
    there = await pool._run(os.getpid)
    with monkeypatch.context() as patch:
        patch.setattr("services.auth.processes._HUNG_SECONDS", 0.2)
        os.kill(there, signal.SIGSTOP)
        with pytest.raises(HashingBusy):
            await pool._run(pieces.echo, 1)
    assert started_at(there) is None
    assert await pool._run(os.getpid) not in {there, os.getpid()}


async def test_a_child_goes_on_while_its_parent_drains(pool: BoundedProcesses, gate: Gate) -> None:
    """A signal to every process of a service is the parent's to follow."""
    held = asyncio.create_task(pool._run(gate.wait, "answered"))
    await until(gate.begun)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pids(pool)[0], number)
    gate.open()
    assert await held == "answered"


async def test_no_process_can_be_started(
    pool: BoundedProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the machine has no room for one the caller may come again, and then there is one."""
    with monkeypatch.context() as patch:
        patch.setattr("services.auth.processes._COMMAND", ("/nowhere/python",))
        with pytest.raises(HashingBusy):
            await pool._run(pieces.echo, 1)
    assert await pool._run(pieces.echo, 2) == 2


async def test_exceptions_reach_the_caller(pool: BoundedProcesses) -> None:
    """As they are, with where they came from; one that pickle cannot carry by its name."""
    with pytest.raises(ValueError, match="too bad") as failure:
        await pool._run(pieces.fail, "too bad")
    assert "in fail" in failure.value.__notes__[0]
    with pytest.raises(RuntimeError, match="MadeOfTwo: onetwo"):
        await pool._run(pieces.fail_strangely)
    with pytest.raises((TypeError, AttributeError)):
        await pool._run(open, os.devnull)
    assert await pool._run(pieces.echo, 1) == 1


async def test_closing_ends_everything(pool: BoundedProcesses, gate: Gate) -> None:
    """Children are gone, no zombies either; who ran, waits or comes later is refused."""
    held = asyncio.create_task(pool._run(gate.wait))
    await until(gate.begun)
    waiting = asyncio.create_task(pool._run(pieces.echo, 1))
    await asyncio.sleep(0)
    (there,) = pids(pool)
    pool.close()
    pool.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(there, os.WNOHANG)  # noqa: ASYNC222 - it does not wait
    for task in (held, waiting, asyncio.create_task(pool._run(pieces.echo, 2))):
        with pytest.raises(HashingBusy):
            await task
    assert pids(pool) == []


async def test_children_end_with_a_killed_parent(tmp_path: Path, gate: Gate) -> None:
    """Those that had nothing to do at once, one that worked when it has finished."""
    parent = subprocess.Popen(  # noqa: S603, ASYNC220 - our own program; starting is all it does
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with parent:
        assert parent.stdout is not None
        line = await asyncio.to_thread(parent.stdout.readline)
        children = [int(pid) for pid in line.split()]
        alive = [pid for pid in children if started_at(pid) is not None]
        parent.kill()
    assert len(alive) == 3
    await until(lambda: sum(started_at(pid) is not None for pid in children) <= 1)
    gate.open()
    await until(lambda: all(started_at(pid) is None for pid in children))


async def test_one_that_dies_slowly_is_no_zombie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it on the event loop, and its exit code is asked for all the same."""
    monkeypatch.setattr(processes, "_DYING_SECONDS", 0.0)
    pool = BoundedProcesses(count=2, queue=10, seconds=0.0)
    pids = await at_once(2, lambda _: pool._run(os.getpid))
    pool.close()
    gc.collect()
    while any(map(started_at, pids)):  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.01)
