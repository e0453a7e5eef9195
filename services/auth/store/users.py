"""Accounts."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection, on_constraint
from services.auth.domain.users import Role, User
from services.auth.errors import EmailAlreadyTaken

_USER = (
    "id, email, role, token_version, created_at, last_login, email_verified_at, mfa_enabled_at,"
    " banned_at, banned_until, deletion_requested_at, erased_at"
)


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


async def find_by_email(conn: Connection, email: str) -> User | None:
    row = await conn.fetchrow(f"SELECT {_USER} FROM users WHERE email = $1", email)
    return _user(row) if row else None


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


async def record_login(conn: Connection, user_id: UUID, now: datetime) -> User | None:
    """Locks an account and stamps the login; None if it is banned, erased or gone."""
    row = await conn.fetchrow(
        "UPDATE users SET last_login = $2 WHERE id = $1 AND erased_at IS NULL"
        " AND (banned_at IS NULL OR banned_until <= $2)"
        f" RETURNING {_USER}",
        user_id,
        now,
    )
    return _user(row) if row else None


async def confirm_password(
    conn: Connection, user_id: UUID, *, verified: str, new_hash: str | None
) -> bool:
    """
    Locks an account whose hash is still the verified one, and stores `new_hash` if there is one.

    False, and nothing is written, if another hash was set since.
    """
    return bool(
        await conn.fetchval(
            "UPDATE users SET password_hash = coalesce($3, password_hash)"
            " WHERE id = $1 AND password_hash = $2 RETURNING true",
            user_id,
            verified,
            new_hash,
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


async def set_mfa_enabled(conn: Connection, user_id: UUID, since: datetime | None) -> User:
    """Says since when the account has a second factor; None for one that has none."""
    row = await conn.fetchrow(
        f"UPDATE users SET mfa_enabled_at = $2 WHERE id = $1 RETURNING {_USER}", user_id, since
    )
    return _user(row)


async def revoke_tokens(conn: Connection, user_id: UUID, now: datetime) -> int:
    """Ends every access token issued so far; returns the least version still good."""
    version = await conn.fetchval(
        "UPDATE users SET token_version = token_version + 1, tokens_revoked_at = $2"
        " WHERE id = $1 RETURNING token_version",
        user_id,
        now,
    )
    return int(version)


async def revoked_versions(conn: Connection, since: datetime) -> Sequence[tuple[UUID, int]]:
    """Returns users whose older tokens ended after `since`, with the least version still good."""
    rows = await conn.fetch(
        "SELECT id, token_version FROM users WHERE tokens_revoked_at > $1", since
    )
    return [(row["id"], row["token_version"]) for row in rows]


def _user(row: Record) -> User:
    return User(
        id=row["id"],
        email=row["email"],
        role=Role(row["role"]),
        token_version=row["token_version"],
        created_at=row["created_at"],
        last_login=row["last_login"],
        email_verified_at=row["email_verified_at"],
        mfa_enabled_at=row["mfa_enabled_at"],
        banned_at=row["banned_at"],
        banned_until=row["banned_until"],
        deletion_requested_at=row["deletion_requested_at"],
        erased_at=row["erased_at"],
    )
