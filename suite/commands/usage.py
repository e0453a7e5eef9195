"""`finity usage`: metered usage."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import click
from rich.table import Table

from suite import database, ledger, state
from suite.console import console
from suite.errors import SuiteError

SOME_REJECTED = 3
FIRST_FAULTS = 10


@click.group()
def usage() -> None:
    """Work with metered usage."""


class Time(click.ParamType[datetime]):
    """An ISO 8601 time; UTC unless it says otherwise."""

    name = "time"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2026-01-31T09:30:00Z", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@usage.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--user", "users", multiple=True, metavar="ID", help="Trace: a user; repeat it.")
@click.option("--tool", metavar="NAME", help="Trace: tool_name of its events. Default: llm-code.")
@click.option("--shift-to", type=Time(), metavar="TIME", help="Move all times: the newest is TIME.")
@click.option("--shift-to-now", is_flag=True, help="The same with the time of the first run.")
def import_(
    file: str,
    users: tuple[str, ...],
    tool: str | None,
    shift_to: datetime | None,
    shift_to_now: bool,
) -> None:
    """Record the usage log FILE (CSV, UTF-8; - reads standard input).

    Goes straight to the usage service: of FINITY_USAGE_ADDRESS and FINITY_SERVICE_KEY
    if they are set, else of the suite that `make run` runs here.

    \b
    Two kinds of file are known by their first line:
      user_id,tool_name,credits,timestamp[,event_id]
          Finity's own. Times are ISO 8601, UTC unless they say otherwise. An
          event_id (UUIDv7) is used as it is; its own time is then the event's.
      TIMESTAMP,ContextTokens,GeneratedTokens
          The Azure LLM inference trace. It has no users: line 2 is the first
          --user's, line 3 the second's, and so on in a circle. A row costs
          1 credit per started 1,000 context tokens and
          1 credit per started 100 generated tokens.

    Events may be 35 days old at most; --shift-to and --shift-to-now move older ones.

    A run may be killed at any moment and started again: the same file with the same
    options has the same event ids, so nothing is recorded twice. A log that has grown
    keeps the ids of its old rows, unless its times are shifted: a shift counts from
    the newest row, so a shifted log must not grow. --shift-to-now remembers its time
    in .finity/imports/ and prints it; --shift-to with that time is the same run
    without that memory.

    Rows that cannot be read or are refused are reported with their line and do not stop the others.

    \b
    Exit code: 0  every row is recorded, now or before
               1  the import stopped before its end; run it again
               3  it ran to its end, but some rows are not recorded
    """
    if shift_to and shift_to_now:
        raise click.UsageError("Take one of --shift-to and --shift-to-now.")
    # gRPC and the contracts take longer to load than other commands to run.
    from suite.importing import plan, screen, target  # noqa: PLC0415

    directory = state.default_directory()
    service = target.usage(os.environ, directory)
    with _regular(file) as path:
        planned = plan.make(
            path,
            directory=directory,
            users=users,
            tool=tool,
            shift_to=shift_to,
            shift_to_now=shift_to_now,
        )
        tally = screen.run(planned, file, service)
    sys.exit(SOME_REJECTED if tally.rejected else 0)


@usage.command()
@click.option("--user", "user_id", type=click.UUID, metavar="ID", help="One account, whole.")
@click.option("--all", "whole", is_flag=True, help="Every account, from its first entry on.")
def verify(user_id: UUID | None, whole: bool) -> None:
    """Prove that credit accounts add up; exit code 1 names the first faults.

    Without options only what changed since the service proved it is looked at.
    """
    if user_id and whole:
        raise click.UsageError("Take one of --user and --all.")
    url = database.url_in_use(state.default_directory(), os.environ)
    if not url:
        raise SuiteError("No suite runs here and DATABASE_URL is not set.")
    looked = asyncio.run(ledger.verify(url, user_id, whole=whole))
    table = Table("check", "accounts that fail", box=None)
    for check, failing in looked.failing.items():
        table.add_row(check, f"[red]{failing}[/]" if failing else "0")
    console.print(table)
    for fault in looked.faults[:FIRST_FAULTS]:
        console.print(
            f"[red]broken[/] {fault.user_id}: {fault.check} should be {fault.expected:,}"
            f" and is {fault.found:,}"
        )
    accounts = "1 account" if looked.accounts == 1 else f"{looked.accounts:,} accounts"
    if looked.faults:
        console.print(f"{len(looked.faults):,} faults in {accounts}")
        sys.exit(1)
    console.print(f"{accounts}, all add up")


@contextlib.contextmanager
def _regular(name: str) -> Iterator[Path]:
    """Yields a file that can be read twice: pipes are copied to disk first."""
    if name != "-" and Path(name).is_file():
        yield Path(name)
        return
    with tempfile.NamedTemporaryFile(prefix="finity-import-") as copy:
        with click.open_file(name, "rb") as source:
            shutil.copyfileobj(source, copy)
        copy.flush()
        yield Path(copy.name)
