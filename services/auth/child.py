"""
The program of a child process that does what takes a core for long; see processes.py.

It reads pieces of work from its standard input, a socket, and answers there. When that
is at its end so is the program: it ends with its parent, however that ended. It imports
what the work needs and nothing else, since each child has a memory of its own.
"""

import contextlib
import os
import pickle
import signal
import struct
import sys
import time
from typing import BinaryIO

# Ahead of each request and answer: how many bytes it has.
LENGTH = struct.Struct("!I")
# Lower than anything that answers; what cannot be ready in time is refused before it starts.
NICENESS = 19
# The shortest that Linux grants (since 6.12).
SLICE_NANOSECONDS = 100_000
_SOCKET = 0
# The system call's number on a machine; there is no wrapper for it.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
# struct sched_attr: size, policy, flags, niceness, priority, slice, deadline, period.
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")


def main() -> None:
    """Works until the parent is gone."""
    # Whoever stops every process of a service at once lets the parent drain first.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    lowered = yielded = False
    # A parent that died while there was work resets the connection.
    with contextlib.suppress(ConnectionError), os.fdopen(_SOCKET, "rb") as requests:
        while (request := _read(requests)) is not None:
            _write(_answer(request))
            # Not before the first piece: a service that starts on a busy machine waits for it, and
            # for all that it imports.
            lowered = lowered or _yield_to_others()
            yielded = yielded or _yield_as_session()


def _read(requests: BinaryIO) -> bytes | None:
    """Returns the next request; None at the end, in the middle of one too."""
    header = requests.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(header)
    request = requests.read(size)
    return request if len(request) == size else None


def _write(answer: bytes) -> None:
    left = memoryview(LENGTH.pack(len(answer)) + answer)
    while left:
        left = left[os.write(_SOCKET, left) :]


def _answer(request: bytes) -> bytes:
    """Does the work; returns whether it succeeded, its value or exception, and its seconds."""
    started = time.perf_counter()
    try:
        # Unpickling imports the work's module: no part of what the next piece will take.
        work, arguments = pickle.loads(request)  # noqa: S301 - our parent's, over a private socket
        started = time.perf_counter()
        value = work(*arguments)
        return pickle.dumps((True, value, time.perf_counter() - started))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's to handle
        return _failure(error, time.perf_counter() - started)


def _failure(error: Exception, seconds: float) -> bytes:
    import traceback  # noqa: PLC0415 - a fifth of what the program takes to start, for nothing

    # An exception loses its traceback in a pickle, but not its notes.
    error.add_note(traceback.format_exc())
    try:
        failure = pickle.dumps((False, error, seconds))
        pickle.loads(failure)  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - some exceptions are made in ways that pickle cannot know
        failure = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}"), seconds))
    return failure


def _yield_to_others() -> bool:
    """Lowers the priority: whoever asks for anything else must not wait for this work."""
    if sys.platform != "linux":
        return True
    # A sandbox may forbid it; the work has to be done all the same.
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    with contextlib.suppress(OSError):
        # It never preempts whoever wakes, and the kernel takes it for what it is: long work.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    _shorten_slice()
    return True


def _shorten_slice() -> None:
    """Asks for the shortest time slice; nothing happens where there is no such thing."""
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None or sys.maxsize < 1 << 32:  # A program of 32 bits has other numbers.
        return
    # Some Pythons are built without it; the others start faster if they need not import it.
    with contextlib.suppress(ImportError, OSError):
        import ctypes  # noqa: PLC0415

        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        # Whoever wakes on this core waits for the rest of this process' slice, however nice it is.
        attributes = _SCHED_ATTR.pack(
            _SCHED_ATTR.size, os.SCHED_BATCH, 0, niceness, 0, SLICE_NANOSECONDS, 0, 0
        )
        # An older kernel or a sandbox refuses it, which the result says and nobody has to know.
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)


def _yield_as_session() -> bool:
    """
    Lowers the priority of this session, which is the child's alone; False to try again.

    Where the kernel groups sessions (CONFIG_SCHED_AUTOGROUP) a niceness counts within one only:
    against the processes of any other session this one would have its full weight.
    """
    if sys.platform != "linux":
        return True
    try:
        with open("/proc/self/autogroup", "w") as autogroup:  # noqa: PTH123 - pathlib is slow to import
            autogroup.write(str(NICENESS))
    except BlockingIOError:
        # Without privileges one session of the whole machine may do it in a tenth of a second.
        return False
    except OSError:
        return True  # There are no groups here, or none that this process may change.
    return True


if __name__ == "__main__":
    main()
