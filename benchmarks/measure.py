"""Runs the rows, round by round, and counts what the servers did."""

import asyncio
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median

from benchmarks.counters import Connection, CountError
from benchmarks.rows import Row
from benchmarks.work import Sample

WARM_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A row with what its rounds gave."""

    row: Row
    rates: tuple[float, ...]
    """Calls or events a second, counted by the server, for each round."""
    samples: tuple[Sample, ...]

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def p50(self) -> float:
        """In seconds."""
        return median(sample.p50 for sample in self.samples)

    @property
    def p99(self) -> float:
        """In seconds."""
        return median(sample.p99 for sample in self.samples)

    def ratio(self, other: "Measured") -> float:
        """Returns the median over rounds of this rate by the other's in the same round."""
        return median(mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True))


async def measure(
    rows: Sequence[Row],
    conn: Connection,
    *,
    seconds: float,
    rounds: int,
    report: Callable[[str], None],
) -> list[Measured]:
    """Measures every row once a round, so that what is compared ran minutes apart at most."""
    rates: list[list[float]] = [[] for _ in rows]
    samples: list[list[Sample]] = [[] for _ in rows]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for number in range(rounds):
            for index, row in enumerate(rows):
                report(f"round {number + 1} of {rounds}: {row.name} ({row.transport})")
                count, sample = await _once(row, conn, pool, seconds)
                rates[index].append(count / sample.seconds)
                samples[index].append(sample)
    return [
        Measured(row, tuple(rate), tuple(sample))
        for row, rate, sample in zip(rows, rates, samples, strict=True)
    ]


async def _once(
    row: Row, conn: Connection, pool: ProcessPoolExecutor, seconds: float
) -> tuple[int, Sample]:
    loop = asyncio.get_running_loop()
    # What earlier rows left in memory is not this one's to write.
    await conn.execute("CHECKPOINT")
    await loop.run_in_executor(pool, row.work.run, min(seconds, WARM_SECONDS))
    before = await _counts(row, conn)
    sample = await loop.run_in_executor(pool, row.work.run, seconds)
    after = await _counts(row, conn)
    if row.counter is None:
        return sample.answered, sample
    count = (after[0] - before[0]) * row.each
    written = after[1] - before[1]
    if row.rows and written != count:
        raise CountError(
            f"{row.name} ({row.transport}): the service counts {count} events, the database"
            f" {written} rows"
        )
    return count, sample


async def _counts(row: Row, conn: Connection) -> tuple[int, int]:
    handled = await row.counter.read(conn) if row.counter else 0
    return handled, await row.rows.read(conn) if row.rows else 0
