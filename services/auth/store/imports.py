"""Accounts that come from another system, many in one statement."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from chassis.ids import uuid7
from chassis.postgres import Connection
from services.auth.domain.admin_logs import Action
from services.auth.domain.users import Role


@dataclass(frozen=True, slots=True)
class NewUser:
    """A row of users to be."""

    id: UUID
    email: str
    password_hash: str | None
    role: Role
    created_at: datetime
    email_verified_at: datetime | None


async def insert_users(conn: Connection, rows: Sequence[NewUser]) -> set[UUID]:
    """Inserts the accounts whose address has none yet; returns their ids."""
    # In one order, so that two imports of the same users wait for each other instead of both.
    rows = sorted(rows, key=lambda row: row.email)
    inserted = await conn.fetch(
        "INSERT INTO users (id, email, password_hash, role, created_at, email_verified_at)"
        " SELECT id, email, password_hash, role, created_at, email_verified_at"
        " FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[],"
        " $6::timestamptz[])"
        " AS new (id, email, password_hash, role, created_at, email_verified_at)"
        " ON CONFLICT (email) DO NOTHING RETURNING id",
        [row.id for row in rows],
        [row.email for row in rows],
        [row.password_hash for row in rows],
        [row.role for row in rows],
        [row.created_at for row in rows],
        [row.email_verified_at for row in rows],
    )
    return {row["id"] for row in inserted}


async def find_ids(conn: Connection, emails: Sequence[str]) -> Mapping[str, UUID]:
    """Returns the account of each address that has one."""
    rows = await conn.fetch(
        "SELECT email, id FROM users WHERE email = ANY($1::text[])", list(emails)
    )
    return {row["email"]: row["id"] for row in rows}


async def enqueue_all(
    conn: Connection,
    topic: str,
    payloads: Sequence[Mapping[str, str]],
    consumer: str,
    now: datetime,
) -> None:
    """Writes an event and its delivery for each payload, as outbox.enqueue does for one."""
    await conn.execute(
        "WITH event AS (INSERT INTO auth_outbox (id, topic, payload, created_at)"
        " SELECT id, $2, payload::jsonb, $5 FROM unnest($1::uuid[], $3::text[])"
        " AS new (id, payload) RETURNING id)"
        " INSERT INTO auth_deliveries (event_id, consumer, next_attempt_at)"
        " SELECT event.id, $4, $5 FROM event",
        [uuid7(now) for _ in payloads],
        topic,
        [json.dumps(payload) for payload in payloads],
        consumer,
        now,
    )


async def log_roles(
    conn: Connection, rows: Sequence[NewUser], *, actor: str, now: datetime
) -> None:
    """Adds an entry to the admin log for each account and the role it came with."""
    await conn.execute(
        "INSERT INTO admin_logs (id, actor, action, target_user_id, details, created_at)"
        f" SELECT id, $4, '{Action.IMPORT_USER}', target, jsonb_build_object('role', role), $5"
        " FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS new (id, target, role)",
        [uuid7(now) for _ in rows],
        [row.id for row in rows],
        [row.role for row in rows],
        actor,
        now,
    )
