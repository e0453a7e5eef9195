"""`finity migrate`: apply the rooms' migrations, or say where the database stands."""

import asyncio
import os

import click
from rich.table import Table

from chassis import migrate as migrations
from suite import database, state
from suite.console import console
from suite.database import MIGRATIONS


@click.group(invoke_without_command=True)
@click.option("--dry-run", is_flag=True, help="Print the SQL that would run, for review.")
@click.pass_context
def migrate(context: click.Context, dry_run: bool) -> None:
    """Apply pending migrations to DATABASE_URL, or to the embedded PostgreSQL."""
    if context.invoked_subcommand:
        return
    with database.reachable_url(state.default_directory(), os.environ) as url:
        if dry_run:
            for migration in asyncio.run(migrations.plan(url, MIGRATIONS)):
                click.echo(f"-- {migration}\n{migration.sql}")
            return
        count = asyncio.run(migrations.apply(url, MIGRATIONS, click.echo))
    click.echo(f"{count} applied." if count else "Nothing to apply.")


@migrate.command()
def status() -> None:
    """List every migration that this checkout or the database knows."""
    with database.reachable_url(state.default_directory(), os.environ) as url:
        states = asyncio.run(migrations.status(url, MIGRATIONS))
    console.print(table(states))


@migrate.command()
def verify() -> None:
    """Fail unless the database has exactly the migrations of this checkout."""
    with database.reachable_url(state.default_directory(), os.environ) as url:
        problems = asyncio.run(migrations.verify(url, MIGRATIONS))
    if problems:
        raise click.ClickException("\n".join(problems))
    click.echo("The database has exactly the migrations of this checkout.")


def table(states: list[migrations.State]) -> Table:
    """One row per migration."""
    rows = Table("room", "version", "name", "state", "applied at", box=None)
    for known in states:
        applied = known.applied_at.strftime("%Y-%m-%d %H:%M:%S") if known.applied_at else ""
        colour = "green" if known.state == "applied" else "yellow"
        rows.add_row(
            known.room, f"{known.version:04d}", known.name, f"[{colour}]{known.state}[/]", applied
        )
    return rows
