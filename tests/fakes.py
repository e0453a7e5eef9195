"""The one thing tests may fake: the time."""

from datetime import UTC, datetime, timedelta


class FakeClock:
    """Starts at the real time, then stands still until moved."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)

    def now(self) -> datetime:
        return self._now

    def move_to(self, time: datetime) -> None:
        self._now = time

    def advance(self, **by: float) -> None:
        """Moves the time by `timedelta(**by)`."""
        self._now += timedelta(**by)
