"""Mailed links and codes, how often they are asked for, and what they change in an account."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection, on_constraint
from services.auth.domain.emails import (
    FORGOTTEN,
    LIFETIMES,
    LONGEST_PAUSE,
    PAUSE,
    MailedSecret,
    Purpose,
    Turn,
)
from services.auth.domain.one_time import CODE_TRIES
from services.auth.errors import EmailAlreadyTaken


@dataclass(frozen=True, slots=True)
class _Table:
    """Where the secrets of a purpose are; the product's document gave each its own words."""

    name: str
    asked: str
    used: str
    session: str = "NULL::uuid"


_VERIFICATIONS = _Table("email_verifications", "created_at", "verified_at", "session_id")
_TABLES = {
    Purpose.VERIFY: _VERIFICATIONS,
    Purpose.CHANGE: _VERIFICATIONS,
    Purpose.RESET: _Table("reset_requests", "requested_at", "used_at"),
    Purpose.SIGN_IN: _Table("email_sign_ins", "created_at", "used_at"),
}


async def take_turn(conn: Connection, who: str, purpose: Purpose, now: datetime) -> Turn:
    """Grants a mail if the last one is long enough ago; of many callers one gets it."""
    next_at = await conn.fetchval(
        "INSERT INTO email_requests AS r (who, purpose, next_at)"
        " VALUES ($1, $2, $3::timestamptz + $4::interval)"
        " ON CONFLICT (who, purpose) DO UPDATE SET tries = 0,"
        " mails = CASE WHEN r.next_at + $6::interval < $3::timestamptz THEN 1 ELSE r.mails + 1 END,"
        " next_at = $3::timestamptz + CASE WHEN r.next_at + $6::interval < $3::timestamptz"
        "  THEN $4::interval"
        "  ELSE least($4::interval * 2 ^ least(r.mails, 20), $5::interval) END"
        " WHERE r.next_at <= $3::timestamptz RETURNING next_at",
        who,
        purpose,
        now,
        PAUSE,
        LONGEST_PAUSE,
        FORGOTTEN,
    )
    if next_at is not None:
        return Turn(True, next_at)
    waits = await conn.fetchval(
        "SELECT next_at FROM email_requests WHERE who = $1 AND purpose = $2", who, purpose
    )
    # Swept in this very moment: then the pause is long over.
    return Turn(False, waits or now)


async def count_try(conn: Connection, who: str, purpose: Purpose) -> int | None:
    """Counts a guess at the code of the last mail; returns its number, None if all are spent."""
    tries: int | None = await conn.fetchval(
        "UPDATE email_requests SET tries = tries + 1"
        " WHERE who = $1 AND purpose = $2 AND tries < $3 RETURNING tries",
        who,
        purpose,
        CODE_TRIES,
    )
    return tries


async def insert_secret(
    conn: Connection,
    purpose: Purpose,
    secret: MailedSecret,
    *,
    digest: str,
    now: datetime,
) -> None:
    """Inserts a secret of a user; does the same work for a user who does not exist."""
    table = _TABLES[purpose]
    extra, value = (", session_id", ", $8::uuid") if table is _VERIFICATIONS else ("", "")
    await conn.execute(
        f"INSERT INTO {table.name}"
        f" (id, user_id, token, purpose, email, {table.asked}, expires_at{extra})"
        f" SELECT $1, id, $3, $4, $5, $6::timestamptz, $6::timestamptz + $7::interval{value}"
        " FROM users WHERE id = $2",
        secret.id,
        secret.user_id,
        digest,
        purpose,
        secret.email,
        now,
        LIFETIMES[purpose],
        *([secret.session_id] if extra else []),
    )


async def supersede(conn: Connection, user_id: UUID, now: datetime, *purposes: Purpose) -> None:
    """Makes the open secrets of a user worthless, of all purposes or of those named."""
    wanted = purposes or tuple(Purpose)
    for table in dict.fromkeys(_TABLES[purpose] for purpose in wanted):
        await conn.execute(
            f"UPDATE {table.name} SET superseded_at = $2"
            f" WHERE user_id = $1 AND purpose = ANY($3::text[])"
            f" AND {table.used} IS NULL AND superseded_at IS NULL",
            user_id,
            now,
            list(wanted),
        )


async def find_secret(
    conn: Connection, purpose: Purpose, digest: str, now: datetime
) -> MailedSecret | None:
    """Returns the secret that was mailed as this digest, used or open but not over."""
    table = _TABLES[purpose]
    row = await conn.fetchrow(
        f"SELECT id, user_id, email, {table.used} AS used_at, {table.session} AS session_id"
        f" FROM {table.name} WHERE token = $1 AND purpose = $2"
        " AND superseded_at IS NULL AND expires_at > $3",
        digest,
        purpose,
        now,
    )
    return _secret(row) if row else None


async def find_open_secret(
    conn: Connection, purpose: Purpose, user_id: UUID, now: datetime
) -> MailedSecret | None:
    """Returns a user's newest secret, if it may still be used."""
    table = _TABLES[purpose]
    row = await conn.fetchrow(
        f"SELECT id, user_id, email, {table.used} AS used_at, {table.session} AS session_id"
        f" FROM {table.name} WHERE user_id = $1 AND purpose = $2"
        f" AND {table.used} IS NULL AND superseded_at IS NULL AND expires_at > $3",
        user_id,
        purpose,
        now,
    )
    return _secret(row) if row else None


async def use_secret(conn: Connection, purpose: Purpose, secret_id: UUID, now: datetime) -> bool:
    """Uses a secret up; False if it is used, superseded or over: one caller gets True."""
    table = _TABLES[purpose]
    return bool(
        await conn.fetchval(
            f"UPDATE {table.name} SET {table.used} = $3 WHERE id = $1 AND purpose = $2"
            f" AND {table.used} IS NULL AND superseded_at IS NULL AND expires_at > $3"
            " RETURNING true",
            secret_id,
            purpose,
            now,
        )
    )


async def write_to_nobody(conn: Connection) -> None:
    """Costs the round trip that a mail would, where there is nobody to write to."""
    await conn.execute("SELECT true")


async def verify_address(conn: Connection, user_id: UUID, now: datetime) -> None:
    """Marks the account's address as verified; the first time counts."""
    await conn.execute(
        "UPDATE users SET email_verified_at = $2 WHERE id = $1 AND email_verified_at IS NULL",
        user_id,
        now,
    )


async def replace_password(conn: Connection, user_id: UUID, password_hash: str | None) -> None:
    """Stores another hash; None takes the way in by password away."""
    await conn.execute("UPDATE users SET password_hash = $2 WHERE id = $1", user_id, password_hash)


async def change_address(conn: Connection, user_id: UUID, email: str, now: datetime) -> None:
    """Gives the account a verified address; EmailAlreadyTaken if another account has it."""
    with on_constraint("users_email_key", EmailAlreadyTaken):
        await conn.execute(
            "UPDATE users SET email = $2, email_verified_at = $3 WHERE id = $1", user_id, email, now
        )


def _secret(row: Record) -> MailedSecret:
    return MailedSecret(
        id=row["id"],
        user_id=row["user_id"],
        email=row["email"],
        used_at=row["used_at"],
        session_id=row["session_id"],
    )


async def delete_old_turns(conn: Connection, before: datetime, limit: int) -> int:
    """Deletes up to `limit` counts of mails whose pause was over before; returns how many."""
    deleted = await conn.fetchval(
        "WITH gone AS (DELETE FROM email_requests WHERE ctid = ANY(ARRAY("
        "SELECT ctid FROM email_requests WHERE next_at < $1"
        " ORDER BY next_at LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING 1)"
        " SELECT count(*) FROM gone",
        before,
        limit,
    )
    return int(deleted)
