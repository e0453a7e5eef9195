"""`finity audit`: whether the admin log is what it was."""

import asyncio
import os
import re
import sys

import click

from services.auth.domain.admin_logs import Chain, Fault, Head
from suite import audit as auditing
from suite import database, state
from suite.console import console
from suite.errors import SuiteError

HASH_DIGITS = 12
_HEAD = re.compile(r"(\d{1,18}):((?:[0-9a-f]{2}){6,32})")
SENTENCES = {
    Fault.GAP: "Entries before it were removed, or it was slipped in.",
    Fault.LINK: "It does not carry the hash of the entry before.",
    Fault.CONTENT: "It is not what its hash was made of.",
    Fault.HEAD: "The log does not end where its head says: entries were removed or added there.",
    Fault.PROOF: "It is not the entry that --head names: the log was written anew.",
}


class HeadNoted(click.ParamType[Head]):
    """A place and the start of a hash, as an earlier run printed them."""

    name = "SEQ:HASH"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Head:
        found = _HEAD.fullmatch(value)
        if found is None:
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
    """Recompute every hash of the admin log; exit code 1 names the first entry that is wrong."""
    url = database.url_in_use(state.default_directory(), os.environ)
    if not url:
        raise SuiteError("No suite runs here and DATABASE_URL is not set.")
    chain = Chain(head)
    broken = asyncio.run(auditing.follow(url, chain))
    if broken is not None:
        named = f" ({broken.id})" if broken.id else ""
        console.print(f"[red]broken[/] at entry {broken.seq}{named}: {broken.fault}")
        console.print(SENTENCES[broken.fault])
        sys.exit(1)
    entries = "1 entry" if chain.seq == 1 else f"{chain.seq:,} entries"
    mark = chain.hash.hex()[:HASH_DIGITS]
    console.print(f"{entries}, chain whole, head {mark}")
    console.print(f"[dim]keep it elsewhere and ask again with --head {chain.seq}:{mark}[/]")
