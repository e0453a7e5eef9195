"""
Limits on guessing: a few free failures, then a delay that doubles with each further one.

A failure costs the next try of the same account, address or pair a wait; nobody is
locked out for good, and a count that nobody adds to is forgotten.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass

from chassis.refusals import TooManyAttempts

REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class Limit:
    """How failures of one kind slow down."""

    name: str
    free: int
    """Failures without a wait."""
    first: float
    """Seconds of the first wait; each further one is twice as long."""
    longest: float
    """Seconds no wait exceeds."""
    remembered: float = 3600.0
    """Seconds after which a count that nobody adds to is forgotten."""

    def wait(self, failures: int) -> float:
        """Returns the wait after so many failures."""
        if failures <= self.free:
            return 0.0
        return min(self.first * 2.0 ** min(failures - self.free - 1, 60), self.longest)


@dataclass(frozen=True, slots=True)
class Try:
    """One thing that failures are counted against."""

    limit: Limit
    who: str


class Limits:
    """The counts of one process."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    async def check(self, *tries: Try) -> None:
        """TooManyAttempts, with the time to wait, while any of them is held off."""
        now = time.monotonic()
        wait = max(self._until(one, now) - now for one in tries)
        if wait > 0:
            raise TooManyAttempts(retry_after=wait)

    async def failed(self, *tries: Try) -> None:
        """Counts a failure against each."""
        now = time.monotonic()
        for one in tries:
            failures, last = self._counts.pop((one.limit.name, one.who), (0, now))
            if now - last > one.limit.remembered:
                failures = 0
            self._counts[one.limit.name, one.who] = failures + 1, now
        while len(self._counts) > REMEMBERED:
            self._counts.popitem(last=False)

    async def forget(self, *tries: Try) -> None:
        """Takes back every failure counted against each."""
        for one in tries:
            self._counts.pop((one.limit.name, one.who), None)

    def _until(self, one: Try, now: float) -> float:
        failures, last = self._counts.get((one.limit.name, one.who), (0, now))
        return last + one.limit.wait(failures)
