"""What must be refused although its lifetime is not over, with the time it was revoked."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from chassis.postgres import Connection


async def ended_sessions(conn: Connection, since: datetime) -> Sequence[tuple[UUID, datetime]]:
    """Returns sessions that ended after `since`, with when."""
    rows = await conn.fetch(
        "SELECT id, ended_at FROM sessions WHERE ended_at > $1 ORDER BY ended_at", since
    )
    return [(row["id"], row["ended_at"]) for row in rows]


async def revoked_versions(
    conn: Connection, since: datetime
) -> Sequence[tuple[UUID, int, datetime]]:
    """Returns users whose older tokens ended after `since`: the least version still good, when."""
    rows = await conn.fetch(
        "SELECT id, token_version, tokens_revoked_at FROM users WHERE tokens_revoked_at > $1"
        " ORDER BY tokens_revoked_at",
        since,
    )
    return [(row["id"], row["token_version"], row["tokens_revoked_at"]) for row in rows]
