"""
Whose turn it is to work, and how busy the event loop is, which decides how many may at once.

Both belong to one event loop and are of no use to any other thread.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

# Of a core. A storm of logins alone takes 0.2 on two cores, with token checks beside it 0.5 to 0.8.
BUSY_SHARE = 0.5
# A shorter window would take a single burst for a storm.
WINDOW_SECONDS = 0.1


class Busyness:
    """Whether the event loop's thread is busy, measured when somebody asks: it has no timer."""

    def __init__(
        self,
        used: Callable[[], float] = time.thread_time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`used` is the seconds of a core that the calling thread has used by the time `now`."""
        self._used, self._now = used, now
        self._used_before, self._before = used(), now()
        self._high = False

    def high(self) -> bool:
        """
        Tells whether it was more than half of a core; only the loop's thread may ask.

        It looks back 0.1 s or, where nobody asked for longer, as far as the last question.
        """
        used, now = self._used(), self._now()
        passed = now - self._before
        if passed >= WINDOW_SECONDS:
            self._high = used - self._used_before > BUSY_SHARE * passed
            self._used_before, self._before = used, now
        return self._high


class Turns:
    """Lets a bounded number of callers work at once, in the order they came in."""

    def __init__(self, limit: Callable[[], int]) -> None:
        """`limit`, never less than 1, is asked whenever somebody comes or has finished."""
        self._limit = limit
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._working = 0

    async def take(self) -> None:
        """Returns when it is the caller's turn, which is over when it calls `give_back`."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._deal()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # Dealing may have passed over it already.
                    self._waiting.remove(turn)
            else:
                self.give_back()  # It came while the caller gave up.
            raise

    def give_back(self) -> None:
        """Ends a turn, which may be the moment of whoever waits."""
        self._working -= 1
        # Somebody works whenever somebody waits, so this is called again: no timer is needed for
        # those whom the limit holds back now.
        self._deal()

    def _deal(self) -> None:
        limit = self._limit()
        while self._waiting and self._working < limit:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self._working += 1
                turn.set_result(None)
