"""What administrators did; rows are only ever added."""

import json
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from chassis.postgres import Connection


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
