"""What a person sees of an import: the plan, a progress bar, the counts."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

from rich import progress
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from suite.console import console, show
from suite.errors import SuiteError
from suite.importing.importer import Importer, Progress
from suite.importing.plan import Plan, isoformat
from suite.importing.tally import Rejection, Tally
from suite.importing.target import Target


def announce(plan: Plan, name: str, address: str) -> None:
    """Says what will be sent where."""
    console.print(f"   {escape(name)}, {plan.rows:,} rows → {address}")
    if plan.shift_to:
        shift = isoformat(plan.shift_to)
        console.print(f"   [dim]times shifted; the same run again: --shift-to {shift}[/]")


def run(plan: Plan, name: str, target: Target) -> Tally:
    """Imports a file before the reader's eyes; SuiteError if it stopped before its end."""
    announce(plan, name, target.address)
    started = time.monotonic()
    with bar(plan.rows) as update:
        importer = Importer(plan.path, plan.layout, plan.checkpoint, update)
        stop = ""
        try:
            asyncio.run(importer.run(target))
        except KeyboardInterrupt:
            stop = "Stopped; the same command goes on from here."
        except SuiteError as error:
            stop = str(error)
    # Also of an import that stopped: what is counted is true.
    summary(importer.tally, time.monotonic() - started)
    if stop:
        raise SuiteError(stop)
    return importer.tally


@contextlib.contextmanager
def bar(rows: int) -> Iterator[Progress]:
    """Shows a progress bar, on a terminal only."""
    columns = (
        TextColumn(" "),
        BarColumn(bar_width=40),
        TaskProgressColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(compact=True),
    )
    # Of its own: suite.console never cuts a line, and a bar that wraps cannot be redrawn.
    terminal = Console(highlight=False)
    shown = progress.Progress(
        *columns, console=terminal, transient=True, disable=not terminal.is_terminal, expand=False
    )
    with shown:
        task = shown.add_task("", total=rows, counts="")

        def update(tally: Tally) -> None:
            counts = f"{tally.accepted:,} accepted"
            counts += f" · {tally.duplicate:,} duplicate" if tally.duplicate else ""
            counts += f" · [red]{tally.rejected:,} rejected[/]" if tally.rejected else ""
            shown.update(task, completed=tally.rows, counts=counts)

        yield update


def summary(tally: Tally, seconds: float) -> None:
    """Prints the counts, the rejections by cause, and the rate."""
    rows = Table(box=None, show_header=False, padding=(0, 0, 0, 3))
    rows.add_column(min_width=10)
    rows.add_column(justify="right", min_width=9)
    rows.add_row("[green]accepted[/]", f"{tally.accepted:,}")
    rows.add_row("duplicate", f"{tally.duplicate:,}")
    if tally.skipped:
        rows.add_row("skipped", f"{tally.skipped:,}", "[dim]recorded by the run before this one[/]")
    colour = "red" if tally.rejected else "default"
    rows.add_row(f"[{colour}]rejected[/]", f"[{colour}]{tally.rejected:,}[/]")
    show(rows)
    for rejection in sorted(tally.rejections.values(), key=lambda kind: -kind.rows):
        _show_rejection(rejection)
    sent = tally.rows - tally.skipped
    console.print(
        f"   [dim]{sent:,} rows in {seconds:.1f} s, {sent / max(seconds, 0.001):,.0f} events/s[/]"
    )


def _show_rejection(rejection: Rejection) -> None:
    lines = ", ".join(f"{line}" for line in rejection.first_lines)
    more = ", …" if rejection.rows > len(rejection.first_lines) else ""
    rows = "1 row" if rejection.rows == 1 else f"{rejection.rows:,} rows"
    console.print(f"   [bold]{escape(rejection.reason)}[/], {rows}: line {lines}{more}")
    console.print(f"   [dim]{escape(rejection.message)}[/]")
