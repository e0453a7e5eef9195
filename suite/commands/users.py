"""`finity users`: accounts."""

import asyncio
import os
import sys
from pathlib import Path

import click

from suite import state
from suite.console import console

SOME_REJECTED = 3


@click.group()
def users() -> None:
    """Work with accounts."""


@users.command("import")
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
def import_(path: str) -> None:
    """Create the accounts of FILE (UTF-8) with the password hashes of another system.

    Goes straight to the auth service: of FINITY_AUTH_ADDRESS and FINITY_SERVICE_KEY
    if they are set, else of the suite that `make run` runs here.

    \b
    A line is a user. Two kinds of file are known by their first line:
      email,role,email_verified,create_time,password_hash
          CSV; only email is needed. Quote a hash that has commas.
      {"email": "ada@example.com", "password_hash": "$2b$12$…"}
          A JSON object with the same names on each line.

    Role is free, pro or admin. Hashes are bcrypt, argon2id, argon2i, scrypt or
    PBKDF2 within the costs that ImportUsers documents.

    A run may be killed at any moment and started again: an address that has an
    account is a duplicate, and nothing of it changes.

    \b
    Exit code: 0  every user has an account, now or before
               1  the import stopped before its end; run it again
               3  it ran to its end, but some users were rejected
    """
    # gRPC and the contracts take longer to load than other commands to run.
    from suite.users import importer  # noqa: PLC0415

    target = importer.auth(os.environ, state.default_directory())
    with console.status("importing") as status:
        tally = asyncio.run(
            importer.run(
                Path(path), target, lambda so_far: status.update(f"{so_far.created:,} created")
            )
        )
    for name in ("created", "duplicates", "rejected"):
        console.print(f"{name:<10} {getattr(tally, name):>10,}")
    for cause, lines in tally.causes.items():
        numbers = ", ".join(map(str, lines))
        console.print(f"  {cause} first in line {numbers}", markup=False, highlight=False)
    sys.exit(SOME_REJECTED if tally.rejected else 0)
