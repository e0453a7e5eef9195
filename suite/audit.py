"""Walks the chain of the admin log, reading only."""

from uuid import UUID

from chassis.postgres import Connection
from services.auth.domain.admin_logs import Broken, Chain, Head
from services.auth.store import admin_logs
from suite import report
from suite.errors import SuiteError

PAGE = 1000
_START = -(2**63), UUID(int=0)


async def follow(url: str, chain: Chain) -> Broken | None:
    """Takes `chain` through the whole log; returns the first fault, None for a whole log."""
    async with report.connected(url) as conn:
        if not await conn.fetchval("SELECT to_regclass('admin_log_head') IS NOT NULL"):
            raise SuiteError("This database has no chained admin log yet; run `finity migrate`.")
        # One moment for the log and its head, whoever writes meanwhile.
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            return await walk(conn, chain)


async def walk(conn: Connection, chain: Chain) -> Broken | None:
    """The same on a connection whose transaction sees one moment."""
    after = _START
    while entries := await admin_logs.walk_admin_logs(conn, after=after, limit=PAGE):
        for entry in entries:
            broken = chain.follow(entry)
            if broken is not None:
                return broken
        after = entries[-1].seq, entries[-1].id
    head = await admin_logs.get_head(conn)
    return chain.end(head or Head(0, b""))
