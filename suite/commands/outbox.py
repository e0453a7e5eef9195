"""`finity outbox`: what one room owes another."""

import asyncio
import os

import click

from chassis import outbox as deliveries
from suite import database, report, state
from suite.console import console
from suite.errors import SuiteError


@click.group()
def outbox() -> None:
    """Work with deliveries between rooms."""


@outbox.command()
def retry() -> None:
    """Try dead deliveries again, once whatever killed them is mended."""
    url = database.url_in_use(state.default_directory(), os.environ)
    if not url:
        raise SuiteError("No suite runs here and DATABASE_URL is not set.")
    for room, count in asyncio.run(_revive(url)).items():
        console.print(f"{room}: {count} due again")


async def _revive(url: str) -> dict[str, int]:
    rooms = [measured.room for measured in await report.outboxes(url)]
    async with report.connected(url) as conn:
        return {room: await deliveries.revive(conn, room) for room in rooms}
