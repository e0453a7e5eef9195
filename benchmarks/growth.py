"""
Cost per event while tool_usage grows: `python -m benchmarks.growth --rows 10000 --rows 20000000`.

Fills tool_usage over the months of its partitions by COPY, and measures RecordUsageBatch
at each size. The filling is of users of its own, without a ledger: it only has to be there.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID

from finity.usage.v1 import usage_pb2
from rich.console import Console

from benchmarks import bed, seed
from benchmarks.bodies import EVENT_ID, USER_ID, Events
from benchmarks.copying import COLUMNS
from benchmarks.counters import Connection
from benchmarks.load import LoadError
from benchmarks.work import Calls
from chassis.ids import uuid7
from suite import state
from suite.errors import SuiteError

PATH = "/finity.usage.v1.UsageService/RecordUsageBatch"
SIZES = (10_000, 100_000, 1_000_000)
# The filling reaches back this far: several months' partitions.
DAYS = 60
BATCH, LINES, PLACES = 1000, 4, 2
MOST_BATCHES = 100
FILL_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What was measured at one size."""

    rows: int
    """In the table when the measurement began."""
    events: int
    seconds: float

    def __str__(self) -> str:
        each = self.seconds / self.events * 1_000_000
        rate = self.events / self.seconds
        return f"{self.rows:>12,} rows: {rate:>10,.0f} events/s, {each:>7.1f} us an event"


def main() -> None:
    arguments = _arguments()
    console = Console(stderr=True)
    try:
        with state.scratch("finity-bench-") as directory, bed.made(directory) as running:
            costs = asyncio.run(_measure(running, arguments, console))
    except (SuiteError, LoadError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
    for cost in costs:
        print(cost)


async def _measure(running: bed.Bed, arguments: argparse.Namespace, console: Console) -> list[Cost]:
    conn = await seed.connect(running)
    try:
        people = await seed.sow(running, conn)
        work = _work(running, people.ids)
        costs = []
        # The first calls plan their statements and fill the caches.
        await asyncio.to_thread(work.run, 1.0)
        for size in sorted(arguments.rows or SIZES):
            console.print(f"filling up to {size:,} rows")
            await fill(conn, people.ids, size)
            await conn.execute("VACUUM ANALYZE tool_usage")
            await conn.execute("CHECKPOINT")
            before = await _count(conn)
            sample = await asyncio.to_thread(work.run, arguments.seconds)
            costs.append(Cost(before, await _count(conn) - before, sample.seconds))
            console.print(str(costs[-1]))
    finally:
        await conn.close()
    return costs


async def fill(conn: Connection, users: Sequence[str], size: int) -> None:
    """Copies rows until there are `size`; more than that stays as it is."""
    now = datetime.now(UTC)
    missing = size - await _count(conn)
    await conn.execute("SELECT usage_make_partitions($1, $2)", now - timedelta(days=DAYS), now)
    # Free calls: they have no entry and no balance to agree with.
    rows = _rows([UUID(user) for user in users], max(missing, 0), now)
    while part := list(islice(rows, FILL_ROWS)):
        await conn.copy_records_to_table("tool_usage", records=part, columns=COLUMNS)


def _rows(
    users: Sequence[UUID], count: int, now: datetime
) -> Iterator[tuple[UUID, UUID, str, int, datetime, None]]:
    step = timedelta(days=DAYS) / max(count, 1)
    for number in range(count):
        at = now - step * (count - number)
        yield uuid7(at), users[number % len(users)], "fill", 0, at, None


async def _count(conn: Connection) -> int:
    return int(await conn.fetchval("SELECT count(*) FROM tool_usage"))


def _work(running: bed.Bed, users: Sequence[str]) -> Calls:
    event = usage_pb2.UsageEvent(event_id=EVENT_ID, user_id=USER_ID, tool_name="rewrite", credits=1)
    template = usage_pb2.RecordUsageBatchRequest(events=[event]).SerializeToString()
    bodies = Events(template, users, BATCH, MOST_BATCHES)
    service = (("authorization", f"Bearer {running.service_key}"),)
    return Calls("grpc", running.usage["native"].address, PATH, service, bodies, LINES, PLACES)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument(
        "--rows", type=int, action="append", metavar="N", help=f"sizes; {SIZES} by default"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    return parser.parse_args()


if __name__ == "__main__":
    main()
