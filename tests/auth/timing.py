"""Whether somebody with a stopwatch can tell two kinds of answers apart."""

import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

# Mann-Whitney's U as a share: 0.5 says that two samples cannot be told apart, 0 or 1 that every
# pair of values can. For n values each, chance alone has a standard deviation of sqrt(1 / 6n):
# 0.032 for 160. APART is more than five of them, which chance exceeds once in 7 million
# comparisons; with 15 of them a run, one run in 400,000 fails for nothing.
SAMPLES = 160
APART = 0.17


async def times(
    call: Callable[[str], Awaitable[object]], kinds: Mapping[str, Iterator[str]]
) -> dict[str, list[float]]:
    """
    Returns seconds of calls by kind, taken in random order so that noise is everybody's.

    A kind gives the address of each of its calls.
    """
    order = [name for name in kinds for _ in range(SAMPLES)]
    random.Random(1).shuffle(order)  # noqa: S311 - any order does
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for name in order:
        email = next(kinds[name])
        started = time.perf_counter()
        await call(email)
        taken[name].append(time.perf_counter() - started)
    return taken


def told_apart(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns how far from a coin's toss it is to guess a value's sample by its size."""
    wins = sum((a > b) + 0.5 * (a == b) for a in first for b in second)
    return abs(wins / (len(first) * len(second)) - 0.5)
