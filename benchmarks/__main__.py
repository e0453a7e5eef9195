"""Measures this machine: `python -m benchmarks`, or `make bench`."""

import argparse
import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks import bed, counters, machine, rows, seed
from benchmarks.bed import Bed
from benchmarks.counters import CountError
from benchmarks.load import LoadError
from benchmarks.measure import measure
from benchmarks.report import Report
from suite import state
from suite.errors import SuiteError

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    arguments = _arguments()
    console = Console(stderr=True)
    try:
        with state.scratch("finity-bench-") as directory:
            console.print("starting PostgreSQL, Valkey, the services, Envoy and the peer")
            with bed.made(directory) as running:
                report = asyncio.run(_measure(running, arguments, console))
    except (SuiteError, CountError, LoadError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
    out = Console(width=None if sys.stdout.isatty() else 140)
    out.print(report.table())
    for line in (*report.notes(), *map(str, report.targets())):
        out.print(line)
    out.print(f"written to {report.save(arguments.output).name} and .json beside it")


async def _measure(running: Bed, arguments: argparse.Namespace, console: Console) -> Report:
    conn = await seed.connect(running)
    try:
        console.print(f"making {seed.USERS:,} users with credits")
        people = await seed.sow(running, conn)
        wanted = [row for row in rows.every(running, people) if _is_wanted(row.name, arguments)]
        measured = await measure(
            wanted,
            conn,
            seconds=arguments.seconds,
            rounds=arguments.rounds,
            report=console.print,
        )
        await counters.audit(conn)
        facts = await machine.describe(conn)
    finally:
        await conn.close()
    today = datetime.now(UTC).date()
    return Report(today, arguments.seconds, arguments.rounds, facts, measured)


def _is_wanted(name: str, arguments: argparse.Namespace) -> bool:
    return not arguments.only or any(part.lower() in name.lower() for part in arguments.only)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=_positive, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, choices=range(1, 22), default=3, metavar="N")
    parser.add_argument("--only", action="append", metavar="PART", help="of the names of rows")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args()


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 300:
        raise argparse.ArgumentTypeError("must be more than 0 and at most 300 seconds")
    return value


if __name__ == "__main__":
    main()
