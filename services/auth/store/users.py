"""Accounts."""

from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection, on_constraint
from services.auth.domain.admin import UserFilter, UserState
from services.auth.domain.users import Role, User
from services.auth.errors import EmailAlreadyTaken
from services.auth.store.conditions import Condition, conditions

USER = (
    "id, email, role, token_version, created_at, last_login, email_verified_at, mfa_enabled_at,"
    " banned_at, banned_until, ban_reason, deletion_requested_at, erased_at, erasure_due_at"
)


async def insert_user(
    conn: Connection, *, user_id: UUID, email: str, password_hash: str | None, now: datetime
) -> User:
    """Inserts an account; EmailAlreadyTaken if the address has one."""
    with on_constraint("users_email_key", EmailAlreadyTaken):
        row = await conn.fetchrow(
            f"INSERT INTO users (id, email, password_hash, created_at) VALUES ($1, $2, $3, $4)"
            f" RETURNING {USER}",
            user_id,
            email,
            password_hash,
            now,
        )
    return to_user(row)


async def find_login(conn: Connection, email: str) -> tuple[UUID | None, str | None]:
    """
    Returns whose address it is and its password hash, None for what there is not.

    No more than that: reading a whole account would take longer than to find that there is none.
    """
    row = await conn.fetchrow("SELECT id, password_hash FROM users WHERE email = $1", email)
    return (row["id"], row["password_hash"]) if row else (None, None)


async def find_password(conn: Connection, user_id: UUID) -> tuple[User, str | None] | None:
    """Returns an account with its password hash, or None."""
    row = await conn.fetchrow(f"SELECT {USER}, password_hash FROM users WHERE id = $1", user_id)
    return (to_user(row), row["password_hash"]) if row else None


async def find_by_email(conn: Connection, email: str) -> User | None:
    row = await conn.fetchrow(f"SELECT {USER} FROM users WHERE email = $1", email)
    return to_user(row) if row else None


async def get_user(conn: Connection, user_id: UUID) -> User | None:
    row = await conn.fetchrow(f"SELECT {USER} FROM users WHERE id = $1", user_id)
    return to_user(row) if row else None


async def lock_user(conn: Connection, user_id: UUID) -> User | None:
    """Locks an account; rows that refer to it may still come meanwhile."""
    row = await conn.fetchrow(f"SELECT {USER} FROM users WHERE id = $1 FOR NO KEY UPDATE", user_id)
    return to_user(row) if row else None


async def lock_admins(conn: Connection, now: datetime) -> list[UUID]:
    """
    Locks every administrator in one order, so that two demotions cannot both be the last.

    Returns those who stay: one who is banned, erased or about to be is no administrator left.
    """
    rows = await conn.fetch(
        f"SELECT {USER} FROM users WHERE role = 'admin' ORDER BY id FOR NO KEY UPDATE"
    )
    admins = map(to_user, rows)
    return [
        user.id for user in admins if user.deletion_requested_at is None and not user.banned(now)
    ]


async def lock_first_admin(conn: Connection) -> None:
    """Lets those who make the first administrator do it one after the other."""
    # There is no row to lock yet, and how many there are is beyond a constraint.
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('users:first admin', 0))")


async def list_users(
    conn: Connection, *, role: Role | None, before: UUID | None, limit: int
) -> list[User]:
    """Returns users, newest first, from just before the id `before`."""
    rows = await conn.fetch(
        f"SELECT {USER} FROM users"
        " WHERE ($1::text IS NULL OR role = $1) AND ($2::uuid IS NULL OR id < $2)"
        " ORDER BY id DESC LIMIT $3",
        role,
        before,
        limit,
    )
    return [to_user(row) for row in rows]


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
        f" WHERE id = $1 RETURNING {USER}",
        user_id,
        role,
        now,
    )
    return to_user(row)


async def ban_user(
    conn: Connection, user_id: UUID, *, reason: str, until: datetime | None, now: datetime
) -> User:
    """Bans an account from now on and ends every access token issued before."""
    row = await conn.fetchrow(
        "UPDATE users SET banned_at = $4, banned_until = $3, ban_reason = $2,"
        " token_version = token_version + 1, tokens_revoked_at = $4"
        f" WHERE id = $1 RETURNING {USER}",
        user_id,
        reason,
        until,
        now,
    )
    return to_user(row)


async def unban_user(conn: Connection, user_id: UUID) -> User | None:
    """Takes a ban off; None if there is none."""
    row = await conn.fetchrow(
        "UPDATE users SET banned_at = NULL, banned_until = NULL, ban_reason = NULL"
        f" WHERE id = $1 AND banned_at IS NOT NULL RETURNING {USER}",
        user_id,
    )
    return to_user(row) if row else None


async def search_users(
    conn: Connection,
    wanted: UserFilter,
    *,
    before: tuple[datetime, UUID] | None,
    limit: int,
    now: datetime,
) -> list[User]:
    """
    Returns users, newest first, from just before a time of creation and id; in a transaction.

    Only the conditions asked for are in the statement, so that each has its index.
    """
    # "a" is best read newest first, "ada.love" by address: the plan depends on the values.
    await conn.execute("SET LOCAL plan_cache_mode = force_custom_plan")
    found: list[Condition] = []
    if wanted.email_prefix:
        # A range, and not LIKE, which gives some characters of an address a meaning.
        last = wanted.email_prefix + "\U0010ffff"
        found.append(("email ~>=~ {} AND email ~<~ {}", (wanted.email_prefix, last)))
    if wanted.role is not None:
        found.append(("role = {}", (wanted.role,)))
    if wanted.state is not None:
        condition = _IN_STATE[wanted.state]
        found.append((condition, (now,) if "{}" in condition else ()))
    if wanted.created_from is not None:
        found.append(("created_at >= {}", (wanted.created_from,)))
    if wanted.created_until is not None:
        found.append(("created_at < {}", (wanted.created_until,)))
    if before is not None:
        found.append(("(created_at, id) < ({}, {})", before))
    where, arguments = conditions(found)
    rows = await conn.fetch(
        f"SELECT {USER} FROM users{where} ORDER BY created_at DESC, id DESC"
        f" LIMIT ${len(arguments) + 1}",
        *arguments,
        limit,
    )
    return [to_user(row) for row in rows]


# As domain.admin.state_of has it.
_IN_STATE = {
    UserState.ACTIVE: "erased_at IS NULL AND deletion_requested_at IS NULL"
    " AND (banned_at IS NULL OR banned_until <= {})",
    UserState.BANNED: "banned_at IS NOT NULL AND (banned_until IS NULL OR banned_until > {})"
    " AND erased_at IS NULL",
    UserState.DELETING: "deletion_requested_at IS NOT NULL AND erased_at IS NULL"
    " AND (banned_at IS NULL OR banned_until <= {})",
    UserState.ERASED: "erased_at IS NOT NULL",
}


async def set_mfa_enabled(conn: Connection, user_id: UUID, since: datetime | None) -> User:
    """Says since when the account has a second factor; None for one that has none."""
    row = await conn.fetchrow(
        f"UPDATE users SET mfa_enabled_at = $2 WHERE id = $1 RETURNING {USER}", user_id, since
    )
    return to_user(row)


async def revoke_tokens(conn: Connection, user_id: UUID, now: datetime) -> int:
    """Ends every access token issued so far; returns the least version still good."""
    version = await conn.fetchval(
        "UPDATE users SET token_version = token_version + 1, tokens_revoked_at = $2"
        " WHERE id = $1 RETURNING token_version",
        user_id,
        now,
    )
    return int(version)


def to_user(row: Record) -> User:
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
        ban_reason=row["ban_reason"],
        deletion_requested_at=row["deletion_requested_at"],
        erased_at=row["erased_at"],
        erasure_due_at=row["erasure_due_at"],
    )
