"""Pieces of work for child processes, which import this module: the standard library only."""

import ctypes
import os
import signal
import struct
import sys
import time
from pathlib import Path

# The number of sched_getattr; and size, policy, flags, niceness, priority, slice, deadline, period.
SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}.get(os.uname().machine)
SCHED_ATTR = struct.Struct("=IIQiIQQQ")


class Gate:
    """Holds work in a child process until it is opened."""

    def __init__(self, folder: Path) -> None:
        self._begun, self._open = folder / "begun", folder / "open"

    def wait(self, answer: str = "") -> str:
        self._begun.touch()
        while not self._open.exists():
            time.sleep(0.005)
        return answer

    def begun(self) -> bool:
        return self._begun.exists()

    def open(self) -> None:
        self._open.touch()


class MadeOfTwo(Exception):  # noqa: N818 - a name for what it is
    """An exception that pickle cannot make again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def echo(value: int) -> int:
    return value


def note(path: Path, line: str) -> None:
    with path.open("a") as notes:
        notes.write(line + "\n")


def fail(text: str) -> None:
    raise ValueError(text)


def fail_strangely() -> None:
    raise MadeOfTwo("one", "two")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def modules() -> set[str]:
    """Returns the packages that the child has imported."""
    return {name.partition(".")[0] for name in sys.modules}


def priority() -> tuple[int, int, str]:
    """Returns the niceness, the policy and, where there are such, the group of the session."""
    group = Path("/proc/self/autogroup")
    return (
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getscheduler(0),
        group.read_text() if group.exists() else "",
    )


def time_slice() -> tuple[int, int, int]:
    """Returns the policy, the niceness and the nanoseconds of a time slice, as the kernel says."""
    attributes = ctypes.create_string_buffer(SCHED_ATTR.size)
    assert ctypes.CDLL(None).syscall(SCHED_GETATTR, 0, attributes, SCHED_ATTR.size, 0) == 0
    _, policy, _, niceness, _, nanoseconds, _, _ = SCHED_ATTR.unpack(attributes.raw)
    return policy, niceness, nanoseconds
