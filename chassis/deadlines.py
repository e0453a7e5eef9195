"""Ends calls whose time is over."""

import asyncio
import time
from contextvars import Context
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
        self._steps: dict[int, _Step] = {}

    def until(self, ends: float) -> "Deadline":
        """
        Returns what a call's work is to be done `with`: DeadlinePassed after `ends`.

        `ends` is monotonic time, NEVER for no end. What asyncio.timeout_at does, at a fifth of
        the cost.
        """
        return Deadline(self, None if ends == NEVER else int(ends / STEP) + 1)

    def enter(self, deadline: "Deadline", number: int) -> None:
        """Adds a deadline that is over with step `number`."""
        step = self._steps.get(number)
        if step is None:
            delay = max(number * STEP - time.monotonic(), 0.0)
            # In a context of its own: it would keep that of the call that happened to be first.
            timer = asyncio.get_running_loop().call_later(
                delay, self._pass, number, context=Context()
            )
            step = self._steps[number] = _Step(timer)
        step.running.add(deadline)

    def leave(self, deadline: "Deadline", number: int) -> None:
        """Takes it out; nothing is kept of a step without calls, whose time may be years away."""
        step = self._steps.get(number)
        if step is None:
            return
        step.running.discard(deadline)
        if not step.running:
            step.timer.cancel()
            del self._steps[number]

    def _pass(self, number: int) -> None:
        for deadline in self._steps.pop(number).running:
            deadline.pass_()


class _Step:
    """Deadlines that are over together."""

    __slots__ = ("running", "timer")

    def __init__(self, timer: asyncio.TimerHandle) -> None:
        self.timer = timer
        self.running: set[Deadline] = set()


class Deadline:
    """Cancels the task that is within when its time is over, and says why."""

    __slots__ = ("_cancelling", "_deadlines", "_passed", "_step", "_task")

    def __init__(self, deadlines: Deadlines, step: int | None) -> None:
        self._deadlines = deadlines
        self._step = step
        self._passed = False

    def __enter__(self) -> None:
        task: asyncio.Task[Any] | None = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline ends a task, and there is none")
        self._task = task
        self._cancelling = task.cancelling()
        if self._step is not None:
            self._deadlines.enter(self, self._step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._step is not None:
            self._deadlines.leave(self, self._step)
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
