"""`finity forget`: delete the development data of this checkout."""

import contextlib
import shutil
from pathlib import Path

import click

from suite import state
from suite.credentials import FILE as CREDENTIALS
from suite.errors import SuiteError
from suite.postgres import EmbeddedPostgres
from suite.supervisor import RUN_RECORD, Supervisor

FOLDERS = ("imports",)
# The credentials last: they are what a deletion that was broken off is known by.
FILES = (RUN_RECORD, "postgres.json", "valkey.json", "valkey.conf", "envoy.yaml", CREDENTIALS)


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def forget(yes: bool) -> None:
    """Delete the embedded database, its credentials and all else the suite keeps in .finity/."""
    directory = state.default_directory()
    require_ours(directory)
    if not yes:
        click.confirm(f"Delete all development data of {directory}?", abort=True)
    with state.locked(directory):
        # A record that cannot be read is no reason to keep it.
        with contextlib.suppress(SuiteError):
            Supervisor(directory).end_leftovers()
        EmbeddedPostgres(directory, durable=True).remove()
        delete(directory)
    kept = sorted(entry.name for entry in directory.iterdir()) if directory.exists() else []
    if kept:
        click.echo(f"Kept in {directory}, because the suite did not make it: {', '.join(kept)}.")


def require_ours(directory: Path) -> None:
    """Raises SuiteError for a folder that no suite ever kept its state in."""
    # The checkout's own folder has no other use, even before a suite first ran.
    if directory == state.ROOT / ".finity" and directory.is_dir():
        return
    if not (directory / CREDENTIALS).is_file():
        raise SuiteError(f"{directory} is no state folder of a suite; nothing was deleted.")


def delete(directory: Path) -> None:
    """Deletes what the suite makes in a state folder, and the folder if nothing else is in it."""
    for name in FOLDERS:
        shutil.rmtree(directory / name, ignore_errors=True)
    for name in FILES:
        # And what a crash left half-written, see state.write.
        for half in directory.glob(f".{name}.*"):
            half.unlink(missing_ok=True)
        (directory / name).unlink(missing_ok=True)
    (directory / "lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()
