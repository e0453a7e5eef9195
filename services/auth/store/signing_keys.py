"""Keys that sign access tokens; the private halves are sealed."""

from collections.abc import Sequence
from datetime import datetime

from chassis.postgres import Connection


async def insert_signing_key(
    conn: Connection, *, kid: str, public_key: bytes, sealed: bytes, now: datetime
) -> None:
    """Inserts the signing key unless another process was first."""
    await conn.execute(
        "INSERT INTO signing_keys (kid, public_key, sealed_private_key, created_at)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        kid,
        public_key,
        sealed,
        now,
    )


async def get_signing_key(conn: Connection) -> tuple[str, bytes]:
    """Returns the id and the sealed private half of the key that signs now."""
    row = await conn.fetchrow(
        "SELECT kid, sealed_private_key FROM signing_keys WHERE retired_at IS NULL"
    )
    return row["kid"], row["sealed_private_key"]


async def list_public_keys(conn: Connection, now: datetime) -> Sequence[tuple[str, bytes]]:
    """Returns every key that may still verify a token."""
    rows = await conn.fetch(
        "SELECT kid, public_key FROM signing_keys"
        " WHERE expires_at IS NULL OR expires_at > $1 ORDER BY created_at DESC",
        now,
    )
    return [(row["kid"], row["public_key"]) for row in rows]
