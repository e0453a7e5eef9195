"""Sums of usage, read from the hourly ones: a report never reads single calls."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from chassis.postgres import Connection
from services.usage.domain.reports import Total


async def sum_usage(
    conn: Connection,
    *,
    user_id: UUID,
    start: datetime,
    end: datetime,
    begins: Sequence[datetime],
    by_tool: bool,
    after: tuple[int, str],
    limit: int,
) -> list[Total]:
    """
    Returns a user's sums by period and tool, in that order, from just after the key `after`.

    `begins` are the instants, rising, at which the periods begin; the first is not after `start`.
    """
    rows = await conn.fetch(
        "SELECT period, tool, sum(calls)::bigint, sum(credits)::bigint FROM ("
        " SELECT width_bucket(hour, $4::timestamptz[]) AS period,"
        "  CASE WHEN $5 THEN tool_name ELSE '' END AS tool, calls, credits"
        " FROM usage_rollups WHERE user_id = $1 AND hour >= $2 AND hour < $3"
        ") AS r WHERE (period, tool) > ($6, $7)"
        " GROUP BY period, tool ORDER BY period, tool LIMIT $8",
        user_id,
        # Periods of the pages before are not summed once more.
        max(start, begins[max(after[0], 1) - 1]),
        end,
        list(begins),
        by_tool,
        *after,
        limit,
    )
    return [Total(*row) for row in rows]
