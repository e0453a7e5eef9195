"""Shares of a month's credits that users were told of."""

from collections.abc import Sequence
from datetime import date, datetime
from uuid import UUID

from chassis.postgres import Connection
from services.usage.domain.thresholds import Crossing, bounds


async def spent_in(
    conn: Connection, user_ids: Sequence[UUID], month: date
) -> list[tuple[UUID, int, int]]:
    """Returns, by user, the credits spent by calls of the month and the highest share told."""
    rows = await conn.fetch(
        "SELECT u.id, (SELECT coalesce(sum(r.credits), 0)::bigint FROM usage_rollups r"
        "  WHERE r.user_id = u.id AND r.hour >= $2 AND r.hour < $3),"
        " (SELECT coalesce(max(t.percent), 0) FROM usage_thresholds t"
        "  WHERE t.user_id = u.id AND t.month = $4)"
        " FROM unnest($1::uuid[]) AS u (id)",
        user_ids,
        *bounds(month),
        month,
    )
    return [(user_id, spent, told) for user_id, spent, told in rows]


async def insert_crossing(conn: Connection, crossing: Crossing, now: datetime) -> bool:
    """Writes a share down; False if this one or a higher one of the month is there."""
    return bool(
        await conn.fetchval(
            "INSERT INTO usage_thresholds (user_id, month, percent, created_at)"
            " SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT FROM usage_thresholds"
            "  WHERE user_id = $1 AND month = $2 AND percent >= $3)"
            " ON CONFLICT (user_id, month, percent) DO NOTHING RETURNING true",
            crossing.user_id,
            crossing.month,
            crossing.percent,
            now,
        )
    )
