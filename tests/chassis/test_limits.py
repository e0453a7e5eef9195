"""chassis.limits: free failures, then waits that double."""

import pytest

from chassis.limits import Limit, Limits, Try
from chassis.refusals import TooManyAttempts

LIMIT = Limit("test", free=2, first=1.0, longest=5.0)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 0), (2, 0), (3, 1), (4, 2), (5, 4), (6, 5), (10_000, 5)]
)
def test_the_wait_doubles_up_to_the_longest(failures: int, seconds: float) -> None:
    """After the free failures each further one doubles the wait, up to the longest."""
    assert LIMIT.wait(failures) == seconds


async def test_failures_hold_off_whom_they_are_counted_against() -> None:
    """The refusal says how long to wait; others go on, and to forget is to begin anew."""
    limits, ada, bob = Limits(), Try(LIMIT, "ada"), Try(LIMIT, "bob")
    for _ in range(2):
        await limits.failed(ada)
        await limits.check(ada)
    await limits.failed(ada)
    with pytest.raises(TooManyAttempts) as refused:
        await limits.check(bob, ada)
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 1
    await limits.check(bob)
    await limits.forget(ada)
    await limits.check(ada)


async def test_a_wait_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is over the next attempt counts; what nobody adds to is forgotten."""
    now = 1000.0
    monkeypatch.setattr("chassis.limits.time.monotonic", lambda: now)
    limits, ada = Limits(), Try(LIMIT, "ada")
    for _ in range(4):
        await limits.failed(ada)
    with pytest.raises(TooManyAttempts):
        await limits.check(ada)
    now += 2.0
    await limits.check(ada)
    now += LIMIT.remembered + 1
    await limits.failed(ada)
    await limits.check(ada)


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound the count that was added to longest ago goes."""
    monkeypatch.setattr("chassis.limits.REMEMBERED", 2)
    limits = Limits()
    strict = Limit("strict", free=0, first=60.0, longest=60.0)
    for name in ("a", "b", "c"):
        await limits.failed(Try(strict, name))
    await limits.check(Try(strict, "a"))
    with pytest.raises(TooManyAttempts):
        await limits.check(Try(strict, "b"))
