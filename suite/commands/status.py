"""`finity status`: what runs here, and how it is."""

import asyncio
import os

import click
from rich.table import Table

from suite import database, readiness, report, state
from suite.console import console


@click.command()
def status() -> None:
    """Show what runs, versions, migrations and what waits in the outboxes."""
    directory = state.default_directory()
    if state.is_locked(directory):
        console.print(f"[green]running[/], supervisor {state.holder(directory)}, {directory}")
    else:
        console.print(f"[yellow]not running[/] from {directory}; `make run` starts it")
    _show_processes(report.processes(directory))
    console.print("versions   " + ", ".join(f"{k} {v}" for k, v in report.versions().items()))
    url = database.url_in_use(directory, os.environ)
    if url:
        readiness.require_database(url)
        asyncio.run(_show_database(url))
    else:
        console.print("database   not running, and DATABASE_URL is not set")


def _show_processes(processes: list[report.Process]) -> None:
    rows = Table("process", "pid", "state", "address", box=None)
    for process in processes:
        shown = "[green]running[/]" if process.alive else "[red]gone[/]"
        rows.add_row(process.name, str(process.pid), shown, process.address)
    if processes:
        console.print(rows)


async def _show_database(url: str) -> None:
    console.print(f"database   PostgreSQL {await report.server_version(url)}")
    for room, counts in (await report.migrations(url)).items():
        shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        console.print(f"migrations {room}: {shown or 'none'}")
    for outbox in await report.outboxes(url):
        lag = f", the oldest for {outbox.oldest_seconds:.0f} s" if outbox.due else ""
        dead = f", [red]{outbox.dead} dead[/]" if outbox.dead else ""
        console.print(f"outbox     {outbox.room}: {outbox.due} due{lag}{dead}")
