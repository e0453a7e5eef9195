"""Every SQL statement of the auth room."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection, on_constraint
from services.auth.domain import Role, Session, User
from services.auth.errors import EmailAlreadyTaken

_USER = "id, email, role, token_version, created_at, last_login"
_SESSION = "id, user_id, counter, created_at, expires_at, refreshed_at, ended_at, end_reason"


async def insert_user(
    conn: Connection, *, user_id: UUID, email: str, password_hash: str, now: datetime
) -> User:
    """Inserts an account; EmailAlreadyTaken if the address has one."""
    with on_constraint("users_email_key", EmailAlreadyTaken):
        row = await conn.fetchrow(
            f"INSERT INTO users (id, email, password_hash, created_at) VALUES ($1, $2, $3, $4)"
            f" RETURNING {_USER}",
            user_id,
            email,
            password_hash,
            now,
        )
    return _user(row)


async def find_login(conn: Connection, email: str) -> tuple[User, str | None] | None:
    """Returns the account of an address with its password hash, or None."""
    row = await conn.fetchrow(f"SELECT {_USER}, password_hash FROM users WHERE email = $1", email)
    return (_user(row), row["password_hash"]) if row else None


async def get_user(conn: Connection, user_id: UUID) -> User | None:
    row = await conn.fetchrow(f"SELECT {_USER} FROM users WHERE id = $1", user_id)
    return _user(row) if row else None


async def lock_user(conn: Connection, user_id: UUID) -> User | None:
    """Locks an account; rows that refer to it may still come meanwhile."""
    row = await conn.fetchrow(f"SELECT {_USER} FROM users WHERE id = $1 FOR NO KEY UPDATE", user_id)
    return _user(row) if row else None


async def lock_admins(conn: Connection) -> list[UUID]:
    """Locks every administrator in one order, so that two demotions cannot both be the last."""
    rows = await conn.fetch(
        "SELECT id FROM users WHERE role = 'admin' ORDER BY id FOR NO KEY UPDATE"
    )
    return [row["id"] for row in rows]


async def list_users(
    conn: Connection, *, role: Role | None, before: UUID | None, limit: int
) -> list[User]:
    """Returns users, newest first, from just before the id `before`."""
    rows = await conn.fetch(
        f"SELECT {_USER} FROM users"
        " WHERE ($1::text IS NULL OR role = $1) AND ($2::uuid IS NULL OR id < $2)"
        " ORDER BY id DESC LIMIT $3",
        role,
        before,
        limit,
    )
    return [_user(row) for row in rows]


async def record_login(
    conn: Connection, user_id: UUID, *, verified: str, new_hash: str | None, now: datetime
) -> bool:
    """
    Stamps the login and, when the hash's parameters changed, stores the new hash.

    False, and nothing is written, if the hash that was verified is not the account's any more.
    """
    return bool(
        await conn.fetchval(
            "UPDATE users SET last_login = $2, password_hash = coalesce($3, password_hash)"
            " WHERE id = $1 AND password_hash = $4 RETURNING true",
            user_id,
            now,
            new_hash,
            verified,
        )
    )


async def set_role(conn: Connection, user_id: UUID, role: Role, now: datetime) -> User:
    """Changes the role and ends every access token issued before."""
    row = await conn.fetchrow(
        "UPDATE users SET role = $2, token_version = token_version + 1, tokens_revoked_at = $3"
        f" WHERE id = $1 RETURNING {_USER}",
        user_id,
        role,
        now,
    )
    return _user(row)


async def insert_admin_log(
    conn: Connection,
    *,
    log_id: UUID,
    actor: str,
    action: str,
    target: UUID,
    details: Mapping[str, str],
    now: datetime,
) -> None:
    await conn.execute(
        "INSERT INTO admin_logs (id, actor, action, target_user_id, details, created_at)"
        " VALUES ($1, $2, $3, $4, $5, $6)",
        log_id,
        actor,
        action,
        target,
        json.dumps(details),
        now,
    )


async def insert_session(
    conn: Connection, session: Session, *, access_token_id: str, refresh_digest: str
) -> None:
    await conn.execute(
        "INSERT INTO sessions (id, user_id, access_token, refresh_token, created_at, expires_at,"
        " refreshed_at, last_seen_at) VALUES ($1, $2, $3, $4, $5, $6, $5, $5)",
        session.id,
        session.user_id,
        access_token_id,
        refresh_digest,
        session.created_at,
        session.expires_at,
    )


async def get_session(conn: Connection, session_id: UUID) -> Session | None:
    row = await conn.fetchrow(f"SELECT {_SESSION} FROM sessions WHERE id = $1", session_id)
    return _session(row) if row else None


async def lock_session(conn: Connection, session_id: UUID) -> Session | None:
    row = await conn.fetchrow(
        f"SELECT {_SESSION} FROM sessions WHERE id = $1 FOR UPDATE", session_id
    )
    return _session(row) if row else None


async def rotate_session(
    conn: Connection,
    *,
    session_id: UUID,
    counter: int,
    refresh_digest: str,
    access_token_id: str,
    idle_since: datetime,
    now: datetime,
) -> Session | None:
    """Moves a living session from `counter` to the next one; None if it is not there any more."""
    row = await conn.fetchrow(
        "UPDATE sessions SET counter = counter + 1, refresh_token = $3, access_token = $4,"
        " refreshed_at = $6, last_seen_at = $6"
        " WHERE id = $1 AND counter = $2 AND ended_at IS NULL AND expires_at > $6"
        f" AND refreshed_at > $5 RETURNING {_SESSION}",
        session_id,
        counter,
        refresh_digest,
        access_token_id,
        idle_since,
        now,
    )
    return _session(row) if row else None


async def end_session(
    conn: Connection, session_id: UUID, *, reason: str, by: str, now: datetime
) -> bool:
    """Ends a session that still lives; False if it was over already."""
    return bool(
        await conn.fetchval(
            "UPDATE sessions SET ended_at = $4, end_reason = $2, ended_by = $3"
            " WHERE id = $1 AND ended_at IS NULL RETURNING true",
            session_id,
            reason,
            by,
            now,
        )
    )


async def ended_sessions(conn: Connection, since: datetime) -> Sequence[UUID]:
    rows = await conn.fetch("SELECT id FROM sessions WHERE ended_at > $1", since)
    return [row["id"] for row in rows]


async def revoked_versions(conn: Connection, since: datetime) -> Sequence[tuple[UUID, int]]:
    """Returns users whose older tokens ended after `since`, with the least version still good."""
    rows = await conn.fetch(
        "SELECT id, token_version FROM users WHERE tokens_revoked_at > $1", since
    )
    return [(row["id"], row["token_version"]) for row in rows]


async def delete_old_sessions(conn: Connection, before: datetime) -> int:
    """Deletes up to 1,000 sessions whose absolute lifetime ended before; returns how many."""
    deleted = await conn.fetchval(
        "WITH old AS (SELECT id FROM sessions WHERE expires_at < $1"
        " ORDER BY expires_at LIMIT 1000 FOR UPDATE SKIP LOCKED),"
        " gone AS (DELETE FROM sessions WHERE id IN (SELECT id FROM old) RETURNING 1)"
        " SELECT count(*) FROM gone",
        before,
    )
    return int(deleted)


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


def _user(row: Record) -> User:
    return User(
        id=row["id"],
        email=row["email"],
        role=Role(row["role"]),
        token_version=row["token_version"],
        created_at=row["created_at"],
        last_login=row["last_login"],
    )


def _session(row: Record) -> Session:
    return Session(
        id=row["id"],
        user_id=row["user_id"],
        counter=row["counter"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        refreshed_at=row["refreshed_at"],
        ended_at=row["ended_at"],
        end_reason=row["end_reason"],
    )
