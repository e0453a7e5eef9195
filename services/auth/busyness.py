"""How busy the event loop is, which decides how much of the cores is left to work that can wait."""

import time
from collections.abc import Callable

# A shorter window would take a single burst for a storm.
WINDOW_SECONDS = 0.1


class Busyness:
    """Whether the event loop's thread is busy, measured when somebody asks: it has no timer."""

    def __init__(
        self,
        share: float,
        used: Callable[[], float] = time.thread_time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        `share` of a core is the most that a loop uses which is not busy.

        `used` is the seconds of a core that the calling thread has used by the time `now`.
        """
        self._share = share
        self._used, self._now = used, now
        self._used_before, self._before = used(), now()
        self._high = False

    def high(self) -> bool:
        """
        Tells whether it was more than its share; only the loop's thread may ask.

        It looks back 0.1 s or, where nobody asked for longer, as far as the last question.
        """
        used, now = self._used(), self._now()
        passed = now - self._before
        if passed >= WINDOW_SECONDS:
            self._high = used - self._used_before > self._share * passed
            self._used_before, self._before = used, now
        return self._high
