"""chassis.limits: free failures, then waits that double."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from chassis.limits import Limit, Limits, Try
from chassis.refusals import TooManyAttempts
from suite.valkey import EmbeddedValkey
from tests.chassis.waiting import until
from tests.factories import at_once

LIMIT = Limit("test", free=2, first=1.0, longest=5.0)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 0), (2, 0), (3, 1), (4, 2), (5, 4), (6, 5), (10_000, 5)]
)
def test_the_wait_doubles_up_to_the_longest(failures: int, seconds: float) -> None:
    """After the free failures each further one doubles the wait, up to the longest."""
    assert LIMIT.wait(failures) == seconds


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
    assert 0 < await held_off(limits, bob, ada) <= 1
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
        assert 59 < await held_off(Limits(redis), ada) <= 60
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
    now += 2.0
    await limits.check(ada)
    now += LIMIT.remembered + 1
    await limits.failed(ada)
    await limits.check(ada)


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
