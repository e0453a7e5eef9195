"""
Limits on guessing: a few free failures, then a delay that doubles with each further one.

A failure costs the next try of the same account, address or pair a wait; nobody is
locked out for good. A count leaks like a bucket: whoever fails no more often than
is free never waits, however long that goes on, and a count that nobody adds to is
forgotten. The counts are in Redis, one for all processes, and in this process as
well: with Redis gone, slow or flushed the process goes on with its own, so the
limits never fail open.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from chassis.refusals import TooManyAttempts

REMEMBERED = 100_000
# A frozen Redis may hold up a login for so many seconds, and then is left alone for a while.
REDIS_SECONDS = 0.25
REDIS_REST_SECONDS = 5.0
PREFIX = "finity:limits:"
_log = structlog.get_logger()

# Limit.wait and Limit.left once more, for milliseconds; a test holds them equal.
RULES = """
local function wait(failures, free, first, longest)
  local over = math.ceil(failures - free)
  if over <= 0 then return 0 end
  return math.min(first * 2 ^ math.min(over - 1, 60), longest)
end
local function left(failures, passed, free, first, longest, remembered)
  if passed < wait(failures, free, first, longest) then return failures end
  if passed >= remembered then return 0 end
  return math.max(0, failures - passed * free / remembered)
end
"""
# One key a script, so that a Redis Cluster can run it; Redis' own clock, so that processes agree.
# A number that is returned loses its fraction, a text does not.
_FAIL = (
    RULES
    + """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local known = redis.call('HMGET', KEYS[1], 'failures', 'last')
local failures, last = tonumber(known[1]) or 0, tonumber(known[2]) or now
local free, first, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
failures = left(failures, now - last, free, first, longest, tonumber(ARGV[4])) + 1
redis.call('HSET', KEYS[1], 'failures', string.format('%.17g', failures), 'last', now)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return string.format('%.17g', failures)
"""
)


@dataclass(frozen=True, slots=True)
class Limit:
    """How failures of one kind slow down."""

    name: str
    free: int
    """Failures without a wait, within `remembered` and in every such time again."""
    first: float
    """Seconds of the first wait; each further one is twice as long."""
    longest: float
    """Seconds no wait exceeds."""
    remembered: float = 3600.0
    """Seconds in which as many failures as are free leak away; without any, all are forgotten."""

    def wait(self, failures: float) -> float:
        """Returns the wait that the last of so many failures costs."""
        over = math.ceil(failures - self.free)
        if over <= 0:
            return 0.0
        return min(self.first * 2.0 ** min(over - 1, 60), self.longest)

    def left(self, failures: float, passed: float) -> float:
        """Returns what is left of a count so many seconds after its last failure."""
        # A failure beside others in a wait that is due must not shorten it.
        if passed < self.wait(failures):
            return failures
        if passed >= self.remembered:
            return 0.0
        return max(0.0, failures - passed * self.free / self.remembered)


@dataclass(frozen=True, slots=True)
class Try:
    """One thing that failures are counted against."""

    limit: Limit
    who: str
    """Whoever it is under a name that tells nobody: it is a key in Redis."""


class Limits:
    """The counts, shared over Redis where there is one."""

    def __init__(self, redis: Redis | None = None) -> None:
        self._redis = redis
        self._resting = float("-inf")
        self._counts: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def check_here(self, *tries: Try) -> None:
        """TooManyAttempts while this process knows that any of them is held off."""
        if not self._counts:
            return
        wait = max(self._wait(one) for one in tries)
        if wait > 0:
            raise TooManyAttempts(retry_after=wait)

    async def check(self, *tries: Try, forgive: Try | None = None) -> None:
        """
        TooManyAttempts, with the time to wait, while any of them is held off anywhere.

        Otherwise the failures counted against `forgive`, one of them, are forgotten.
        """
        self.check_here(*tries)
        counted = await self._look(tries)
        if (wait := max((one.limit.wait(n) - ago for one, n, ago in counted), default=0.0)) > 0:
            raise TooManyAttempts(retry_after=wait)
        if forgive is None:
            return
        # Only now: a right guess that is held off must not be told by a shorter wait afterwards.
        elsewhere = any(n for one, n, _ in counted if one == forgive)
        if elsewhere or (forgive.limit.name, forgive.who) in self._counts:
            await self.forget(forgive)

    async def failed(self, *tries: Try) -> None:
        """Counts a failure against each."""
        now = time.monotonic()
        told = await self._ask(lambda pipe: [pipe.eval(_FAIL, 1, *_numbers(one)) for one in tries])
        elsewhere = [float(number) for number in told] or [0.0] * len(tries)
        for one, known in zip(tries, elsewhere, strict=True):
            failures, last = self._counts.pop((one.limit.name, one.who), (0.0, now))
            failures = one.limit.left(failures, now - last) + 1
            self._counts[one.limit.name, one.who] = max(failures, known), now
        while len(self._counts) > REMEMBERED:
            self._counts.popitem(last=False)

    async def forget(self, *tries: Try) -> None:
        """Takes back every failure counted against each."""
        for one in tries:
            self._counts.pop((one.limit.name, one.who), None)
        await self._ask(lambda pipe: [pipe.delete(_key(one)) for one in tries])

    def _wait(self, one: Try) -> float:
        now = time.monotonic()
        failures, last = self._counts.get((one.limit.name, one.who), (0.0, now))
        return last + one.limit.wait(failures) - now

    async def _look(self, tries: Sequence[Try]) -> list[tuple[Try, float, float]]:
        """Returns what Redis knows of each: how many failures, and the seconds since the last."""

        def look(pipe: Pipeline) -> None:
            pipe.time()
            for one in tries:
                pipe.hmget(_key(one), "failures", "last")

        told = await self._ask(look)
        if not told:
            return []
        (seconds, microseconds), *known = told
        now = seconds + microseconds / 1_000_000
        return [
            (one, float(failures or 0), now - float(last or 0) / 1000)
            for one, (failures, last) in zip(tries, known, strict=True)
        ]

    async def _ask(self, fill: Callable[[Pipeline], object]) -> list[Any]:
        """Returns what Redis answers, nothing if it does not."""
        if self._redis is None or time.monotonic() < self._resting:
            return []
        try:
            async with asyncio.timeout(REDIS_SECONDS), self._redis.pipeline(False) as pipeline:
                fill(pipeline)
                return list(await pipeline.execute())
        except (RedisError, OSError, TimeoutError) as error:
            self._resting = time.monotonic() + REDIS_REST_SECONDS
            _log.warning("redis is gone; attempts are counted here", error=type(error).__name__)
            return []


def _key(one: Try) -> str:
    return f"{PREFIX}{one.limit.name}:{one.who}"


def _numbers(one: Try) -> tuple[str, ...]:
    """Returns the script's key and arguments."""
    seconds = (one.limit.first, one.limit.longest, one.limit.remembered)
    return (_key(one), str(one.limit.free), *(str(round(1000 * value)) for value in seconds))
