"""chassis.limits: free failures, then waits that double, and a count that leaks away."""

import asyncio
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from chassis.limits import PREFIX, RULES, Limit, Limits, Try
from chassis.refusals import TooManyAttempts
from suite.valkey import EmbeddedValkey
from tests.chassis.waiting import until
from tests.factories import at_once

LIMIT = Limit("test", free=2, first=60.0, longest=300.0)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 0), (2, 0), (3, 60), (4, 120), (5, 240), (6, 300), (10_000, 300)]
)
def test_the_wait_doubles_up_to_the_longest(failures: int, seconds: float) -> None:
    """After the free failures each further one doubles the wait, up to the longest."""
    assert LIMIT.wait(failures) == seconds


def test_as_many_leak_away_as_are_free() -> None:
    """In each time a count is remembered for, little by little; after a whole one all are gone."""
    assert LIMIT.left(2, 0) == 2
    assert LIMIT.left(2, 900) == pytest.approx(1.5)
    assert LIMIT.left(10, 1800) == pytest.approx(9)
    assert LIMIT.left(0.5, 1800) == 0
    assert LIMIT.left(10, 3600) == 0


def test_without_free_failures_nothing_leaks_away() -> None:
    """The count is then forgotten at once, or not at all."""
    strict = Limit("strict", free=0, first=60.0, longest=60.0)
    assert strict.left(3, 3599) == 3
    assert strict.left(3, 3600) == 0


@given(st.floats(0, 200), st.floats(0, 3000))
def test_a_wait_that_is_due_is_served(failures: float, passed: float) -> None:
    """No failure meanwhile makes it end sooner, however much would have leaked away by then."""
    wide = Limit("wide", free=50, first=1.0, longest=900.0)
    due = wide.wait(failures)
    if passed < due:
        assert passed + wide.wait(wide.left(failures, passed) + 1) >= due


async def test_redis_reckons_as_this_process_does(redis_url: str) -> None:
    """The rule is written twice; both ways it comes to the very same numbers."""
    limits = (
        LIMIT,
        Limit("wide", free=50, first=1.0, longest=900.0),
        Limit("slow", free=4, first=600.0, longest=3600.0, remembered=7200.0),
        Limit("strict", free=0, first=60.0, longest=60.0),
    )
    script = (
        RULES
        + """
    local failures, passed, free = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
    local first, longest, remembered = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
    local due = wait(failures, free, first, longest)
    return {tostring(due), tostring(left(failures, passed, free, first, longest, remembered))}
    """
    )
    counts = (0.0, 0.7, 1.0, 2.0, 3.3, 4.0, 5.5, 12.0, 50.01, 53.0, 70.0, 10_000.0)
    times = (0, 999, 1000, 4100, 72_000, 900_000, 1_800_000, 3_600_000)
    async with Redis.from_url(redis_url) as redis:
        for limit, failures, passed in product(limits, counts, times):
            seconds = (limit.first, limit.longest, limit.remembered)
            numbers = (failures, passed, limit.free, *(round(1000 * value) for value in seconds))
            due, left = map(float, await redis.eval(script, 0, *numbers))
            assert due == pytest.approx(1000 * limit.wait(failures))
            assert left == pytest.approx(limit.left(failures, passed / 1000))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests must not pass for a frozen Redis."""
    monkeypatch.setattr("chassis.limits.REDIS_SECONDS", 20.0)


@pytest.fixture(params=["redis", "alone"])
async def limits(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Limits]:
    """Counts shared over Redis, and those of a process without one."""
    if request.param == "alone":
        yield Limits()
        return
    async with Redis.from_url(redis_url) as redis:
        yield Limits(redis)


def somebody(limit: Limit = LIMIT) -> Try:
    return Try(limit, uuid4().hex)


async def held_off(limits: Limits, *tries: Try) -> float:
    """Returns the wait that a check must ask for."""
    with pytest.raises(TooManyAttempts) as refused:
        await limits.check(*tries)
    assert refused.value.retry_after is not None
    return refused.value.retry_after


async def test_failures_hold_off_whom_they_are_counted_against(limits: Limits) -> None:
    """The refusal says how long to wait; others go on."""
    ada, bob = somebody(), somebody()
    for _ in range(2):
        await limits.failed(ada)
        await limits.check(ada)
    await limits.failed(ada)
    assert 30 < await held_off(limits, bob, ada) <= 60
    await limits.check(bob)
    await limits.forget(ada)
    await limits.check(ada)


async def test_a_success_is_forgiven_and_only_then(limits: Limits) -> None:
    """A check that passes forgets the failures of whom it is told to, and of nobody else."""
    ada, place = somebody(), somebody()
    for _ in range(2):
        await limits.failed(ada, place)
    await limits.check(ada, place, forgive=ada)
    await limits.failed(ada, place)
    await limits.check(ada)
    assert await held_off(limits, place) > 0
    await limits.failed(ada)
    await limits.failed(ada)
    with pytest.raises(TooManyAttempts):
        await limits.check(ada, forgive=ada)
    assert await held_off(limits, ada) > 0


async def test_who_is_held_off_is_not_forgiven(limits: Limits) -> None:
    """A pair is forgiven by a check that all pass: its wait would tell afterwards."""
    pair, place = somebody(), somebody(Limit("place", free=0, first=60.0, longest=60.0))
    for _ in range(LIMIT.free):
        await limits.failed(pair)
    await limits.failed(place)
    with pytest.raises(TooManyAttempts):
        await limits.check(place, pair, forgive=pair)
    await limits.failed(pair)
    assert await held_off(limits, pair) > 0


async def test_processes_share_their_counts(redis_url: str) -> None:
    """What fails in one process is held off in another, and is forgiven there too."""
    strict = Limit("strict", free=1, first=60.0, longest=60.0)
    async with Redis.from_url(redis_url) as redis:
        here, there, ada = Limits(redis), Limits(redis), somebody(strict)
        await here.failed(ada)
        await there.check(ada, forgive=ada)
        await there.failed(ada)
        await there.check(ada)
        await there.failed(ada)
        assert 30 < await held_off(Limits(redis), ada) <= 60
        await Limits().check(ada)


async def test_fifty_failures_at_once_are_all_counted(redis_url: str) -> None:
    """Failures in many processes at one moment are added up, none is lost."""
    wide = Limit("wide", free=49, first=60.0, longest=60.0)
    async with Redis.from_url(redis_url) as redis:
        ada = somebody(wide)
        await at_once(50, lambda _: Limits(redis).failed(ada))
        assert await held_off(Limits(redis), ada) > 0


async def test_without_redis_the_process_counts_alone(state_dir: Path) -> None:
    """Limits hold when Redis is not there, stops in between, or is emptied."""
    strict = Limit("strict", free=0, first=60.0, longest=60.0)
    folder = state_dir / uuid4().hex
    folder.mkdir()
    valkey = EmbeddedValkey(folder)
    valkey.start()
    async with Redis.from_url(valkey.url, socket_connect_timeout=1) as redis:
        limits, before, after = Limits(redis), somebody(strict), somebody(strict)
        try:
            await limits.failed(before)
            await redis.flushall()
            assert await held_off(limits, before) > 0
        finally:
            valkey.stop()
        assert await held_off(limits, before) > 0
        await limits.check(after)
        await limits.failed(after)
        assert await held_off(limits, after) > 0


async def test_a_frozen_redis_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that takes connections and never answers is asked once, not by every login."""
    asked = 0

    async def frozen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        while await reader.read(1000):
            pass
        writer.close()
        await writer.wait_closed()

    monkeypatch.setattr("chassis.limits.REDIS_SECONDS", 0.05)
    server = await asyncio.start_server(frozen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Redis.from_url(f"redis://127.0.0.1:{port}") as redis:
        limits, ada = Limits(redis), somebody(Limit("strict", free=0, first=60.0, longest=60.0))
        for _ in range(20):
            await limits.failed(ada)
        assert await held_off(limits, ada) > 0
    server.close()
    await server.wait_closed()
    assert asked == 1


async def test_a_wait_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is over the next attempt counts; what nobody adds to is forgotten."""
    now = 1000.0
    monkeypatch.setattr("chassis.limits.time.monotonic", lambda: now)
    limits, ada = Limits(), somebody()
    for _ in range(4):
        await limits.failed(ada)
    await held_off(limits, ada)
    now += LIMIT.wait(4)
    await limits.check(ada)
    now += LIMIT.remembered + 1
    await limits.failed(ada)
    await limits.check(ada)


class Days:
    """The same failures counted by this process and by Redis, as time goes by for both."""

    def __init__(self, redis: Redis, monkeypatch: pytest.MonkeyPatch, one: Try) -> None:
        self._redis, self._one, self._now = redis, one, 1000.0
        self._key = f"{PREFIX}{one.limit.name}:{one.who}"
        self._here = Limits()
        self._patch = monkeypatch

    async def fail(self) -> None:
        with self._patch.context() as patch:
            patch.setattr("chassis.limits.time.monotonic", lambda: self._now)
            await self._here.failed(self._one)
        await Limits(self._redis).failed(self._one)

    async def passing(self, seconds: float) -> None:
        self._now += seconds
        # Redis goes by its own clock: what it knows is made older.
        await self._redis.hincrby(self._key, "last", -round(1000 * seconds))

    async def waits(self) -> bool:
        """Tells whether the next try is held off; both must say the same."""
        with self._patch.context() as patch:
            patch.setattr("chassis.limits.time.monotonic", lambda: self._now)
            here = await passes(self._here, self._one)
        assert await passes(Limits(self._redis), self._one) == here
        return not here

    async def agree(self) -> bool:
        known = float(await self._redis.hget(self._key, "failures") or 0)
        count, _ = self._here._counts[self._one.limit.name, self._one.who]
        return count == pytest.approx(known, abs=0.1)


# Time that really passes meanwhile, on a busy machine too, is nothing beside a month.
NETWORK = Limit("network", free=50, first=86_400.0, longest=86_400.0, remembered=2_592_000.0)


@pytest.fixture
async def days(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Days]:
    async with Redis.from_url(redis_url) as redis:
        yield Days(redis, monkeypatch, somebody(NETWORK))


async def test_failures_far_apart_never_cost_a_wait(days: Days) -> None:
    """Somebody mistypes now and then behind an address of many, for good: nobody waits."""
    for _ in range(NETWORK.free + 10):
        await days.fail()
        assert not await days.waits()
        assert await days.agree()
        await days.passing(10 * NETWORK.remembered / (NETWORK.free + 10))


async def test_failures_at_the_free_rate_never_cost_a_wait(days: Days) -> None:
    """Nor do as many as are free in each time that a count is remembered for."""
    for _ in range(3 * NETWORK.free):
        await days.fail()
        assert not await days.waits()
        await days.passing(NETWORK.remembered / NETWORK.free)
    assert await days.agree()


async def test_a_burst_costs_a_wait(days: Days) -> None:
    """However quiet it was before; and the wait is over when it is, whatever has leaked away."""
    await days.fail()
    await days.passing(NETWORK.remembered / 2)
    for number in range(NETWORK.free + 1):
        assert not await days.waits(), number
        await days.fail()
    assert await days.waits()
    assert await days.agree()
    await days.passing(NETWORK.longest - 3600)
    assert await days.waits()
    await days.passing(3601)
    assert not await days.waits()


async def test_more_than_leaks_away_comes_to_a_wait(days: Days) -> None:
    """Far more often than is free, each by itself, they use the limit up in the end."""
    for _ in range(4 * NETWORK.free):
        await days.fail()
        if await days.waits():
            break
        await days.passing(NETWORK.remembered / NETWORK.free / 1.6)
    assert await days.waits()


async def test_a_wait_ends_in_redis_too(redis_url: str) -> None:
    """Redis counts the wait by its own clock and lets the next attempt through after it."""
    short = Limit("short", free=0, first=0.05, longest=0.05, remembered=0.2)
    async with Redis.from_url(redis_url) as redis:
        ada = somebody(short)
        await Limits(redis).failed(ada)
        await until(lambda: passes(Limits(redis), ada))
        key = f"finity:limits:short:{ada.who}"
        await until(lambda: gone(redis, key))


async def passes(limits: Limits, one: Try) -> bool:
    try:
        await limits.check(one)
    except TooManyAttempts:
        return False
    return True


async def gone(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound the count that was added to longest ago goes."""
    monkeypatch.setattr("chassis.limits.REMEMBERED", 2)
    limits = Limits()
    strict = Limit("strict", free=0, first=60.0, longest=60.0)
    for name in ("a", "b", "c"):
        await limits.failed(Try(strict, name))
    await limits.check(Try(strict, "a"))
    await held_off(limits, Try(strict, "b"))
