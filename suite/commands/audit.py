"""`finity audit`: whether the admin log is what it was."""

import asyncio
import os
import re
import sys
from uuid import UUID

import click

from chassis.postgres import Connection
from services.auth.domain.admin_logs import Broken, Chain, Fault, Head
from services.auth.store import admin_logs
from suite import database, report, state
from suite.console import console
from suite.errors import SuiteError

PAGE = 1000
HASH_DIGITS = 12
_HEAD = re.compile(r"(\d{1,18}):([0-9a-f]{12,64})")
_NOWHERE = UUID(int=0)
SENTENCES = {
    Fault.GAP: "entries before it were removed, or it was added",
    Fault.LINK: "it does not carry the hash of the entry before",
    Fault.CONTENT: "it is not what its hash was made of",
    Fault.HEAD: "the log does not end where its head says: the last entries were removed or added",
    Fault.PROOF: "it is not the entry that the given head names",
}


class HeadNoted(click.ParamType[Head]):
    """SEQ:HASH, as an earlier run printed it."""

    name = "SEQ:HASH"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Head:
        found = _HEAD.fullmatch(value)
        if found is None or len(found[2]) % 2:
            self.fail("write it as an earlier run printed it, e.g. 412:09af53bc21de.", param, ctx)
        return Head(int(found[1]), bytes.fromhex(found[2]))


@click.group()
def audit() -> None:
    """Look at the log of what administrators did."""


@audit.command()
@click.option(
    "--head",
    type=HeadNoted(),
    help="A head printed earlier: nothing up to there may have been written anew.",
)
def verify(head: Head | None) -> None:
    """Recompute every hash of the admin log; exit with 1 at the first entry that is not whole."""
    url = database.url_in_use(state.default_directory(), os.environ)
    if not url:
        raise SuiteError("No suite runs here and DATABASE_URL is not set.")
    chain = Chain(head)
    broken = asyncio.run(_verify(url, chain))
    if broken is not None:
        console.print(f"[red]broken[/] at entry {broken.seq}{_named(broken)}: {broken.fault}")
        console.print(SENTENCES[broken.fault])
        sys.exit(1)
    entries = "1 entry" if chain.seq == 1 else f"{chain.seq:,} entries"
    mark = chain.hash.hex()[:HASH_DIGITS]
    console.print(f"{entries}, chain whole, head {mark}")
    console.print(f"[dim]note it elsewhere and ask later with --head {chain.seq}:{mark}[/]")


async def _verify(url: str, chain: Chain) -> Broken | None:
    async with report.connected(url) as conn:
        found = await conn.fetchval("SELECT to_regclass('admin_log_head') IS NOT NULL")
        if not found:
            raise SuiteError("This database has no chained admin log yet; run `finity migrate`.")
        # One moment for the log and its head, whoever writes meanwhile.
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            return await _walk(conn, chain)


async def _walk(conn: Connection, chain: Chain) -> Broken | None:
    after = (-(2**63), _NOWHERE)
    while entries := await admin_logs.walk_admin_logs(conn, after=after, limit=PAGE):
        for entry in entries:
            broken = chain.follow(entry)
            if broken is not None:
                return broken
        after = (entries[-1].seq, entries[-1].id)
    head = await admin_logs.get_head(conn)
    return chain.end(head or Head(0, b""))


def _named(broken: Broken) -> str:
    return f" ({broken.id})" if broken.id else ""
