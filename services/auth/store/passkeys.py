"""Passkeys."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection, on_constraint
from services.auth.domain.passkeys import Passkey
from services.auth.errors import PasskeyRejected

_PASSKEY = "id, user_id, credential_id, public_key, sign_count, synced"


async def insert_passkey(conn: Connection, passkey: Passkey, *, name: str, now: datetime) -> None:
    """Inserts a passkey; PasskeyRejected if somebody has registered it."""
    with on_constraint("passkeys_credential_id_key", PasskeyRejected):
        await conn.execute(
            f"INSERT INTO passkeys ({_PASSKEY}, name, created_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            passkey.id,
            passkey.user_id,
            passkey.credential_id,
            passkey.public_key,
            passkey.sign_count,
            passkey.synced,
            name,
            now,
        )


async def find_passkey(conn: Connection, credential_id: bytes) -> Passkey | None:
    row = await conn.fetchrow(
        f"SELECT {_PASSKEY} FROM passkeys WHERE credential_id = $1", credential_id
    )
    return _passkey(row) if row else None


async def list_credential_ids(conn: Connection, user_id: UUID) -> Sequence[bytes]:
    rows = await conn.fetch(
        "SELECT credential_id FROM passkeys WHERE user_id = $1 ORDER BY id", user_id
    )
    return [row["credential_id"] for row in rows]


async def count_use(conn: Connection, passkey_id: UUID, sign_count: int, now: datetime) -> bool:
    """Moves the counter on; False if it did not grow though this passkey counts, or it is gone."""
    return bool(
        await conn.fetchval(
            "UPDATE passkeys SET sign_count = $2, last_used_at = $3 WHERE id = $1"
            " AND (sign_count < $2 OR (sign_count = 0 AND $2 = 0)) RETURNING true",
            passkey_id,
            sign_count,
            now,
        )
    )


async def delete_passkey(conn: Connection, user_id: UUID, passkey_id: UUID) -> bool:
    return bool(
        await conn.fetchval(
            "DELETE FROM passkeys WHERE id = $1 AND user_id = $2 RETURNING true",
            passkey_id,
            user_id,
        )
    )


def _passkey(row: Record) -> Passkey:
    return Passkey(
        id=row["id"],
        user_id=row["user_id"],
        credential_id=row["credential_id"],
        public_key=row["public_key"],
        sign_count=row["sign_count"],
        synced=row["synced"],
    )
