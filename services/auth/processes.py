"""
Work that takes a core for long, in a bounded number of child processes.

Neither the event loop nor the interpreter's lock waits for it (decision 25), and what
could not be ready before the call's deadline is refused before it starts. The event
loop drives the children itself, over a socket each: there is no thread in between. While
it is busy they rest most of the time, for whoever answers waits for what works on its core.
"""

import asyncio
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import structlog

from chassis.calls import current_call
from services.auth.busyness import Busyness
from services.auth.child import LENGTH
from services.auth.errors import HashingBusy

T = TypeVar("T")
# -P: modules are found where this process finds them, not in whatever folder it was started in.
_COMMAND = (sys.executable, "-P", "-m", "services.auth.child")
# Weight of the newest measurement in the running mean of a piece of work.
_SMOOTHING = 0.1
# The costliest work takes about a second of a core; a child that takes so long is hung or stopped.
_HUNG_SECONDS = 60.0
_DYING_SECONDS = 0.1
# While the event loop is busy a child rests, after each piece, so many times as long as that took.
RESTS = 3
# One piece that took long, or was itself kept waiting, must not cost a child for long.
LONGEST_REST_SECONDS = 0.3
# Of a core: what a loop that is not busy uses at most. Logins alone use 0.11 of one for each child
# that hashes for them; with token checks beside two of those the loop uses 0.5 to 0.8.
BUSY_SHARE, BUSY_SHARE_OF_A_CHILD = 0.25, 0.125
# Whether the work succeeded, its value or its exception, and the seconds it took.
_Answer = tuple[bool, Any, float]
_log = structlog.get_logger()


class BoundedProcesses:
    """
    Processes with a bounded queue in front; the base of whoever has work for them.

    One event loop alone may use an object. Work is a function of a module, which the child imports.
    """

    def __init__(
        self, *, count: int, queue: int, seconds: float, busyness: Busyness | None = None
    ) -> None:
        """
        `queue` bounds what waits or runs at once; `seconds` is what a piece takes at first.

        `busyness` is the event loop's, by default as this thread's clock tells it.
        """
        self._children = [_Child() for _ in range(count)]
        # The one used last is taken first: few that are warm, rather than all of them in turn.
        self._idle = list(self._children)
        self._free = asyncio.Semaphore(count)
        self._busyness = busyness or Busyness(BUSY_SHARE + BUSY_SHARE_OF_A_CHILD * count)
        self._resting = 0
        self._exchanges: set[asyncio.Task[_Answer | None]] = set()
        self._queue = queue
        self._waiting = 0
        self._seconds = seconds

    def close(self) -> None:
        """Ends the children; what they were doing is HashingBusy for whoever waits for it."""
        for child in self._children:
            child.close()

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        each = self._seconds + self._rest_after(self._seconds)
        ahead = self._waiting + self._resting
        expected = self._seconds + each * ahead / len(self._children)
        if self._waiting >= self._queue or expected > _seconds_left():
            raise HashingBusy(retry_after=max(expected, 0.1))
        self._waiting += 1
        try:
            return await self._do(work, *arguments)
        finally:
            self._waiting -= 1

    async def _start(self, work: Callable[..., object], *arguments: object) -> None:
        """Starts every child; returns once each has done a piece of work, and so is warm."""
        # None is free before all have theirs: nobody gets two.
        await asyncio.gather(*(self._do(work, *arguments) for _ in self._children))

    async def _do(self, work: Callable[..., T], *arguments: object) -> T:
        request = pickle.dumps((work, arguments))
        await self._free.acquire()
        if self._seconds > _seconds_left():
            # The queue was slower than it looked when the call came in.
            self._free.release()
            raise HashingBusy(retry_after=max(self._seconds, 0.1))
        child = self._idle.pop()
        # A task of its own, which a caller that gives up leaves behind: the child answers all
        # the same, and whoever comes next must not read that.
        exchange = asyncio.create_task(child.ask(request))
        self._exchanges.add(exchange)
        exchange.add_done_callback(partial(self._release, child))
        answer = await asyncio.shield(exchange)
        if answer is None:
            raise HashingBusy(retry_after=max(self._seconds, 0.1))
        succeeded, value, _ = answer
        if not succeeded:
            raise value
        return cast("T", value)

    def _release(self, child: "_Child", exchange: "asyncio.Task[_Answer | None]") -> None:
        self._exchanges.discard(exchange)
        failed = exchange.cancelled() or exchange.exception() is not None
        answer = None if failed else exchange.result()
        rest = 0.0
        if answer is not None:
            self._seconds += _SMOOTHING * (answer[2] - self._seconds)
            rest = self._rest_after(answer[2])
        self._resting += 1
        if rest:
            exchange.get_loop().call_later(rest, self._put_back, child)
        else:
            self._put_back(child)

    def _rest_after(self, seconds: float) -> float:
        """Returns how long a child rests now after a piece that took so long."""
        return min(RESTS * seconds, LONGEST_REST_SECONDS) if self._busyness.high() else 0.0

    def _put_back(self, child: "_Child") -> None:
        self._resting -= 1
        self._idle.append(child)
        self._free.release()


class _Child:
    """A child process: started when it is first asked, and anew if it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._closed = False

    async def ask(self, request: bytes) -> _Answer | None:
        """Returns the answer, None if there is none; one at a time may ask."""
        try:
            reader, writer = await self._connected()
            writer.write(LENGTH.pack(len(request)) + request)
            async with asyncio.timeout(_HUNG_SECONDS):
                (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                answer = await reader.readexactly(size)
            # Both ends of a private socket are ours: nobody else can put a pickle into it.
            return cast("_Answer", pickle.loads(answer))  # noqa: S301
        except (EOFError, OSError) as error:
            code = self._end()
            # The kernel ends what takes too much memory; or there is none for another process.
            if not self._closed:
                _log.warning("child_process_lost", exit_code=code, error=repr(error))
            return None
        except BaseException:
            self._end()  # What it answers now is nobody's.
            raise

    def close(self) -> None:
        """Ends it for good."""
        self._closed = True
        self._end()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and self._process is not None:
            if self._process.poll() is None:
                return self._streams
            self._end()  # It died while it had nothing to do, which is nobody's loss.
        if self._closed:
            raise EOFError
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _started(theirs)
            streams = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        self._streams = streams
        if self._closed:
            raise EOFError
        return streams

    def _end(self) -> int | None:
        """Returns its exit code, None if there was no process."""
        streams, self._streams = self._streams, None
        process, self._process = self._process, None
        if streams is not None:
            streams[1].transport.abort()
        if process is None:
            return None
        process.kill()
        # It is dead in a moment, and would be a zombie until somebody asks for its exit code.
        try:
            return process.wait(_DYING_SECONDS)
        except subprocess.TimeoutExpired:
            # It comes last for a core in its death too: the event loop must not wait for that.
            threading.Thread(target=process.wait, name="reaper", daemon=True).start()
            return None


def _started(theirs: socket.socket) -> "subprocess.Popen[bytes]":
    # A session of its own: its priority counts against every other one's (see child.py), and an
    # interrupt at the terminal is the parent's to handle.
    return subprocess.Popen(  # noqa: S603 - our own module
        _COMMAND,
        stdin=theirs.fileno(),
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _seconds_left() -> float:
    try:
        return current_call().remaining()
    except LookupError:
        return float("inf")
