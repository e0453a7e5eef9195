"""chassis.clock: the time in UTC."""

from datetime import UTC, datetime

from chassis.clock import SystemClock


def test_the_system_clock_tells_the_time_in_utc() -> None:
    """The machine's clock answers the time now, aware and in UTC."""
    before = datetime.now(UTC)
    now = SystemClock().now()
    assert before <= now <= datetime.now(UTC)
    assert now.tzinfo is UTC
