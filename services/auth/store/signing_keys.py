"""Keys that sign access tokens; the private halves are sealed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from asyncpg import Record

from chassis.postgres import Connection
from services.auth.domain.signing_keys import KeyPlan

_PLAN = "kid, coalesce(activates_at, created_at) AS activates_at, retired_at, expires_at"
_NEWEST_FIRST = "ORDER BY 2 DESC, retired_at DESC NULLS FIRST"


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as it rests."""

    plan: KeyPlan
    public_key: bytes
    sealed: bytes


async def lock_signing_keys(conn: Connection, *, alone: bool) -> None:
    """
    Keeps whoever wants them `alone` from whoever changes the keys, until COMMIT.

    A row would not do: the key that a rotation under way makes is none that could be locked yet.
    """
    how = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
    await conn.execute(f"SELECT {how}(hashtextextended('signing_keys', 0))")


async def insert_signing_key(
    conn: Connection,
    *,
    kid: str,
    public_key: bytes,
    sealed: bytes,
    now: datetime,
    activates_at: datetime | None = None,
) -> bool:
    """Inserts a key without successor; False if there is one, another process was first."""
    return bool(
        await conn.fetchval(
            "INSERT INTO signing_keys"
            " (kid, public_key, sealed_private_key, created_at, activates_at)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING true",
            kid,
            public_key,
            sealed,
            now,
            activates_at or now,
        )
    )


async def retire_signing_key(
    conn: Connection, *, retired_at: datetime, expires_at: datetime, now: datetime
) -> bool:
    """Plans the end of the newest key; False, and nothing is written, unless it signs already."""
    return bool(
        await conn.fetchval(
            "UPDATE signing_keys SET retired_at = $1, expires_at = $2"
            " WHERE retired_at IS NULL AND coalesce(activates_at, created_at) <= $3"
            " RETURNING true",
            retired_at,
            expires_at,
            now,
        )
    )


async def withdraw_signing_keys(conn: Connection, now: datetime) -> Sequence[str]:
    """Ends every key that is published, those that wait as well; returns their ids."""
    rows = await conn.fetch(
        "UPDATE signing_keys SET retired_at = least(retired_at, $1), expires_at = $1"
        " WHERE expires_at IS NULL OR expires_at > $1 RETURNING kid",
        now,
    )
    return [row["kid"] for row in rows]


async def newest_plan(conn: Connection) -> KeyPlan:
    """Returns the key that has no successor."""
    row = await conn.fetchrow(f"SELECT {_PLAN} FROM signing_keys WHERE retired_at IS NULL")
    return _plan(row)


async def list_signing_keys(conn: Connection, now: datetime) -> Sequence[StoredKey]:
    """Returns every key that is published, the newest first."""
    rows = await conn.fetch(
        f"SELECT {_PLAN}, public_key, sealed_private_key FROM signing_keys"
        f" WHERE expires_at IS NULL OR expires_at > $1 {_NEWEST_FIRST}",
        now,
    )
    return [StoredKey(_plan(row), row["public_key"], row["sealed_private_key"]) for row in rows]


async def list_plans(conn: Connection) -> Sequence[KeyPlan]:
    """Returns every key that is kept, published or not, the newest first."""
    rows = await conn.fetch(f"SELECT {_PLAN} FROM signing_keys {_NEWEST_FIRST}")
    return [_plan(row) for row in rows]


def _plan(row: Record) -> KeyPlan:
    return KeyPlan(row["kid"], row["activates_at"], row["retired_at"], row["expires_at"])
