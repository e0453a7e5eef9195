"""`finity keys`: the keys that sign access tokens."""

import asyncio
import os
from collections.abc import Sequence
from datetime import UTC, datetime

import click
from rich.table import Table

from services.auth.domain.signing_keys import KeyPlan
from services.auth.store import signing_keys
from suite import console, database, report, state
from suite.errors import SuiteError

_FORMAT = "%Y-%m-%d %H:%MZ"


@click.group()
def keys() -> None:
    """Work with the keys that sign access tokens."""


@keys.command("list")
def list_() -> None:
    """Show every key, what it does now and until when."""
    url = database.url_in_use(state.default_directory(), os.environ)
    if not url:
        raise SuiteError("No suite runs here and DATABASE_URL is not set.")
    rows = Table("key", "state", "signs from", "signs until", "verifies until", box=None)
    now = datetime.now(UTC)
    for plan in asyncio.run(_plans(url)):
        moments = (plan.activates_at, plan.retired_at, plan.expires_at)
        rows.add_row(plan.kid, plan.state(now), *map(_shown, moments))
    console.show(rows)


@keys.command()
@click.option("--reason", required=True, metavar="TEXT", help="Why, for the admin log.")
@click.option("--withdraw", is_flag=True, help="For a leaked key: all others end now.")
def rotate(reason: str, withdraw: bool) -> None:
    """Make a new key: published now, signing once every cache of the keys has it.

    Goes to the auth service: of FINITY_AUTH_ADDRESS and FINITY_SERVICE_KEY if they
    are set, else of the suite that `make run` runs here. Tokens of the old key are
    good to their end. While a new key waits to sign no other one is made.

    With --withdraw the new key signs at once, every other one ends at once, and
    so do all access tokens; sessions go on with their refresh tokens.
    """
    # gRPC and the contracts take longer to load than other commands to run.
    from suite import rotation  # noqa: PLC0415

    rotated = rotation.rotate(os.environ, state.default_directory(), reason, withdraw=withdraw)
    made = "is published" if rotated.created else "waits already"
    console.console.print(f"{rotated.kid} {made} and signs from {_shown(rotated.activates_at)}")


async def _plans(url: str) -> Sequence[KeyPlan]:
    async with report.connected(url) as conn:
        return await signing_keys.list_plans(conn)


def _shown(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime(_FORMAT) if moment else ""
