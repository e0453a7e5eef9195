"""The end of accounts, what is stored about somebody, and what has expired."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from chassis.postgres import Connection
from services.auth.domain.users import Role

# Every table of the room with rows of a user, and what its owner may see of them: the time first,
# no secret and nothing made from one. Erasing deletes these rows; a test asks that none is missing.
PERSONAL: Mapping[str, str] = {
    "sessions": "created_at, id, device, host(address) AS address, amr, acr, authenticated_at,"
    " refreshed_at, last_seen_at, expires_at, ended_at, end_reason,"
    " split_part(ended_by, ':', 1) AS ended_by",
    "email_verifications": "created_at, purpose, email, expires_at, verified_at",
    "email_sign_ins": "created_at, email, expires_at, used_at",
    "reset_requests": "requested_at, email, expires_at, used_at",
    "chrome_auth_links": "created_at, client_name, expires_at, approved_at, claimed_at",
    "oauth_identities": "created_at, provider, subject, email, last_used_at",
    "oauth_flows": "created_at, provider, purpose, expires_at, claimed_at",
    "mfa_totp": "created_at, confirmed_at, last_used_at",
    "mfa_recovery_codes": "created_at, used_at",
    "passkeys": "created_at, name, synced, last_used_at",
    "mfa_challenges": "expires_at, purpose, used_at",
}
# Tables whose rows are of no use so long after `expires_at`, whatever became of them. What anybody
# may have written goes at once.
_KEPT = timedelta(hours=72)
EXPIRING: Mapping[str, timedelta] = {
    "email_verifications": _KEPT,
    "email_sign_ins": _KEPT,
    "reset_requests": _KEPT,
    "chrome_auth_links": _KEPT,
    "oauth_flows": timedelta(0),
    # It expires when its last token is surely over; this is for clocks and for whoever looks back.
    "signing_keys": _KEPT,
    # A used challenge must not come back for a replica whose clock is behind.
    "mfa_challenges": timedelta(minutes=5),
}
_ACCOUNT = (
    "id, email, password_hash IS NOT NULL AS has_password, role, created_at, last_login,"
    " email_verified_at, mfa_enabled_at, oauth_provider, oauth_id, banned_at, banned_until,"
    " ban_reason, deletion_requested_at, erasure_due_at"
)


async def request_deletion(
    conn: Connection, user_id: UUID, *, role: Role, now: datetime, due: datetime
) -> bool:
    """Asks for an erasure; False if it was asked for before or the role is not `role` any more."""
    return bool(
        await conn.fetchval(
            "UPDATE users SET deletion_requested_at = $3, erasure_due_at = $4"
            " WHERE id = $1 AND role = $2 AND deletion_requested_at IS NULL AND erased_at IS NULL"
            " RETURNING true",
            user_id,
            role,
            now,
            due,
        )
    )


async def cancel_deletion(conn: Connection, user_id: UUID) -> None:
    """Keeps an account that was to be erased and is not yet."""
    await conn.execute(
        "UPDATE users SET deletion_requested_at = NULL, erasure_due_at = NULL"
        " WHERE id = $1 AND deletion_requested_at IS NOT NULL AND erased_at IS NULL",
        user_id,
    )


async def list_due(conn: Connection, now: datetime, limit: int) -> Sequence[UUID]:
    """Returns accounts that are due for erasure, the longest due first."""
    rows = await conn.fetch(
        "SELECT id FROM users WHERE erasure_due_at <= $1 AND erased_at IS NULL"
        " ORDER BY erasure_due_at LIMIT $2",
        now,
        limit,
    )
    return [row["id"] for row in rows]


async def claim_due(conn: Connection, user_id: UUID, now: datetime) -> str | None:
    """Locks an account that is due; its address, or None if it is not, or somebody holds it."""
    email: str | None = await conn.fetchval(
        "SELECT email FROM users WHERE id = $1 AND erasure_due_at <= $2 AND erased_at IS NULL"
        " FOR NO KEY UPDATE SKIP LOCKED",
        user_id,
        now,
    )
    return email


async def erase_user(conn: Connection, user_id: UUID, *, email: str, now: datetime) -> int | None:
    """
    Takes a person out of an account whose erasure is due, and every way in; the row stays.

    Returns the least token version still good; None if the account was erased or kept.
    """
    version: int | None = await conn.fetchval(
        "UPDATE users SET email = $2, erased_at = $3, role = 'free', password_hash = NULL,"
        " oauth_provider = NULL, oauth_id = NULL, last_login = NULL, email_verified_at = NULL,"
        " mfa_enabled_at = NULL, banned_at = NULL, banned_until = NULL, ban_reason = NULL,"
        " token_version = token_version + 1, tokens_revoked_at = $3"
        " WHERE id = $1 AND erasure_due_at <= $3 AND erased_at IS NULL RETURNING token_version",
        user_id,
        email,
        now,
    )
    return version


async def delete_personal(conn: Connection, user_id: UUID) -> None:
    """Deletes what is stored about a user beside the account's own row."""
    for table in PERSONAL:
        await conn.execute(f"DELETE FROM {table} WHERE user_id = $1", user_id)


async def forget_answers(conn: Connection, user_id: UUID) -> None:
    """Deletes the idempotency keys that a user called with, and those answered with the user."""
    await conn.execute(
        "DELETE FROM auth_idempotency_keys WHERE caller = 'user:' || $1::text", str(user_id)
    )
    # An answer that is a User has its id.
    await conn.execute("DELETE FROM auth_idempotency_keys WHERE answer ->> 'id' = $1", str(user_id))


async def forget_mail_about(conn: Connection, user_id: UUID) -> None:
    """Deletes every mail about a user from the outbox, sent or not, wherever it went."""
    await conn.execute("SELECT auth_forget_mail_about($1)", str(user_id))


async def forget_mail_to(conn: Connection, address: str) -> None:
    """Deletes every mail to an address from the outbox, sent or not."""
    await conn.execute("SELECT auth_forget_mail_to($1)", address)


async def forget_old_mail(conn: Connection, before: datetime, limit: int) -> int:
    """Deletes mails of the outbox that were written before and are sent or dead."""
    return int(await conn.fetchval("SELECT auth_forget_old_mail($1, $2)", before, limit))


async def forget_old_events(conn: Connection, before: datetime, limit: int) -> int:
    """Deletes other events of the outbox, written before, that every consumer has."""
    return int(await conn.fetchval("SELECT auth_forget_old_events($1, $2)", before, limit))


async def delete_expired(conn: Connection, table: str, before: datetime, limit: int) -> int:
    """Deletes up to `limit` rows of an EXPIRING table that expired before; returns how many."""
    deleted = await conn.fetchval(
        # By place, because the planner would rather read the table than look up many ids.
        f"WITH gone AS (DELETE FROM {table} WHERE ctid = ANY(ARRAY("
        f"SELECT ctid FROM {table} WHERE expires_at < $1"
        " ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING 1)"
        " SELECT count(*) FROM gone",
        before,
        limit,
    )
    return int(deleted)


async def export_account(conn: Connection, user_id: UUID) -> dict[str, Any] | None:
    """Returns the account's own row; None if there is none or it is erased."""
    found = await conn.fetchval(
        f"SELECT to_jsonb(a) FROM (SELECT {_ACCOUNT} FROM users"
        " WHERE id = $1 AND erased_at IS NULL) AS a",
        user_id,
    )
    account: dict[str, Any] | None = json.loads(found) if found else None
    return account


async def export_records(
    conn: Connection, table: str, user_id: UUID, limit: int
) -> tuple[list[Any], int]:
    """Returns the newest rows of a PERSONAL table, and how many there are."""
    return await _records(
        conn, f"SELECT {PERSONAL[table]} FROM {table} WHERE user_id = $1", user_id, limit
    )


async def export_admin_log(conn: Connection, user_id: UUID, limit: int) -> tuple[list[Any], int]:
    """Returns what administrators did to a user, not who they are."""
    return await _records(
        conn,
        "SELECT created_at, action, details, split_part(actor, ':', 1) AS by"
        " FROM admin_logs WHERE target_user_id = $1",
        user_id,
        limit,
    )


async def export_pending_mails(conn: Connection, address: str, limit: int) -> tuple[list[Any], int]:
    """Returns the kinds of the mails to an address that wait to be sent."""
    return await _records(
        conn,
        "SELECT o.created_at, o.payload->>'template' AS kind FROM auth_outbox o"
        " JOIN auth_deliveries d ON d.event_id = o.id"
        " WHERE o.topic = 'mail' AND o.payload->>'to' = $1 AND d.state = 'due'",
        address,
        limit,
    )


async def _records(
    conn: Connection, select: str, of: UUID | str, limit: int
) -> tuple[list[Any], int]:
    """Runs a SELECT whose first column is a time; returns the newest rows, and how many it has."""
    rows = await conn.fetch(
        "SELECT to_jsonb(r) AS record, count(*) OVER () AS total"
        f" FROM ({select} ORDER BY 1 DESC) AS r LIMIT $2",
        of,
        limit,
    )
    return [json.loads(row["record"]) for row in rows], rows[0]["total"] if rows else 0
