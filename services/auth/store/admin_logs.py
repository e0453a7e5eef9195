"""What administrators did; rows are only ever added, and the database chains them."""

import json
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection
from services.auth.domain.admin import LogFilter
from services.auth.domain.admin_logs import AdminLog, Head
from services.auth.store.conditions import Condition, conditions

_LOG = "seq, id, actor, action, target_user_id, details, created_at, prev_hash, hash"


async def insert_admin_log(
    conn: Connection,
    *,
    log_id: UUID,
    actor: str,
    action: str,
    target: UUID | None,
    details: Mapping[str, str],
    now: datetime,
) -> None:
    """
    Adds an entry; its place and hash are the trigger's.

    From here to the commit every other writer waits: let it be the last statement.
    """
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


async def list_admin_logs(
    conn: Connection, wanted: LogFilter, *, before: int | None, limit: int
) -> list[AdminLog]:
    """Returns entries, newest first, from just before the place `before`."""
    found: list[Condition] = []
    if wanted.target is not None:
        found.append(("target_user_id = {}", (wanted.target,)))
    if wanted.actor is not None:
        found.append(("actor = {}", (wanted.actor,)))
    if wanted.action is not None:
        found.append(("action = {}", (wanted.action,)))
    if wanted.start is not None:
        found.append(("created_at >= {}", (wanted.start,)))
    if wanted.end is not None:
        found.append(("created_at < {}", (wanted.end,)))
    if before is not None:
        found.append(("seq < {}", (before,)))
    where, arguments = conditions(found)
    rows = await conn.fetch(
        f"SELECT {_LOG} FROM admin_logs{where} ORDER BY seq DESC LIMIT ${len(arguments) + 1}",
        *arguments,
        limit,
    )
    return [_log(row) for row in rows]


async def walk_admin_logs(
    conn: Connection, *, after: tuple[int, UUID], limit: int
) -> list[AdminLog]:
    """Returns entries, oldest first, from just after a place and id; two may claim one place."""
    rows = await conn.fetch(
        f"SELECT {_LOG} FROM admin_logs WHERE (seq, id) > ($1, $2) ORDER BY seq, id LIMIT $3",
        *after,
        limit,
    )
    return [_log(row) for row in rows]


async def get_head(conn: Connection) -> Head | None:
    """Returns the end of the chain; None if somebody removed it."""
    row = await conn.fetchrow("SELECT seq, hash FROM admin_log_head")
    return Head(row["seq"], row["hash"]) if row else None


def _log(row: Record) -> AdminLog:
    return AdminLog(
        seq=row["seq"],
        id=row["id"],
        actor=row["actor"],
        action=row["action"],
        target=row["target_user_id"],
        details=json.loads(row["details"]),
        created_at=row["created_at"],
        prev_hash=row["prev_hash"],
        hash=row["hash"],
    )
