"""`finity mail`: what the suite sent to people on this machine."""

from datetime import UTC, datetime

import click
from rich.markup import escape
from rich.table import Table

from suite import state
from suite.console import console, show


@click.command()
@click.argument("name", required=False, metavar="[ID|last]")
def mail(name: str | None) -> None:
    """List the mails that the suite sent here, newest last, or print one.

    `make run` takes every mail itself, into .finity/mail/, and sends none on.
    """
    # The parser of mails takes a moment that other commands need not wait.
    from suite import mailbox  # noqa: PLC0415

    directory = state.default_directory()
    if name:
        found = mailbox.find(directory, name)
        for title, value in (("From", found.sender), ("To", found.to), ("Subject", found.subject)):
            click.echo(f"{title}: {value}")
        click.echo(f"\n{found.text}")
        return
    listed = mailbox.mails(directory)
    if not listed:
        console.print("no mail yet")
        return
    rows = Table("id", "to", "subject", "age", box=None)
    now = datetime.now(UTC)
    for one in listed:
        rows.add_row(one.id, escape(one.to), escape(one.subject), mailbox.age(one, now))
    show(rows)
