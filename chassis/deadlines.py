"""Ends calls whose time is over."""

import asyncio
import time
from types import TracebackType
from typing import Any

from chassis.refusals import DeadlinePassed

# In seconds. Calls whose time is over within the same step share a timer: one for every call
# costs five times as much. A call may last so much longer; the margin covers it.
STEP = 0.005
NEVER = float("inf")


class Deadlines:
    """The deadlines of one event loop's calls."""

    def __init__(self) -> None:
        self._due: dict[int, set[Deadline]] = {}

    def until(self, ends: float) -> "Deadline":
        """
        Returns what a call's work is to be done `with`: DeadlinePassed after `ends`.

        `ends` is monotonic time, NEVER for no end. What asyncio.timeout_at does, at a fifth of
        the cost.
        """
        return Deadline(self._fellows(ends))

    def _fellows(self, ends: float) -> "set[Deadline]":
        if ends == NEVER:
            return set()
        step = int(ends / STEP) + 1
        fellows = self._due.get(step)
        if fellows is None:
            fellows = self._due[step] = set()
            delay = max(step * STEP - time.monotonic(), 0.0)
            asyncio.get_running_loop().call_later(delay, self._pass, step)
        return fellows

    def _pass(self, step: int) -> None:
        for deadline in self._due.pop(step):
            deadline.pass_()


class Deadline:
    """Cancels the task that is within when its time is over, and says why."""

    __slots__ = ("_cancelling", "_fellows", "_passed", "_task")

    def __init__(self, fellows: "set[Deadline]") -> None:
        self._fellows = fellows
        self._passed = False

    def __enter__(self) -> None:
        task: asyncio.Task[Any] | None = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline ends a task, and there is none")
        self._task = task
        self._cancelling = task.cancelling()
        self._fellows.add(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._fellows.discard(self)
        if not self._passed:
            return
        # Taken back in any case: the work may have made an answer of its own of it.
        ours = self._task.uncancel() <= self._cancelling
        if ours and isinstance(error, asyncio.CancelledError):
            raise DeadlinePassed from None

    def pass_(self) -> None:
        """Ends the work."""
        self._passed = True
        self._task.cancel()
