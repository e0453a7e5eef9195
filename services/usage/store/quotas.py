"""Quotas of users and roles, and what is used of them."""

from collections.abc import Iterable, Sequence
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection
from services.usage.domain.calendar import Window
from services.usage.domain.quotas import EVERY_TOOL, Counter, Quota, Scope
from services.usage.domain.standing import Role

_QUOTA = "q.user_id, q.role, q.tool_name, q.time_window, q.max_calls, q.max_credits, q.updated_at"


async def upsert_quota(conn: Connection, quota: Quota) -> None:
    """Stores a quota in the place of the one of its scope, tool and window."""
    scope = "user_id" if quota.scope.user_id is not None else "role"
    await conn.execute(
        "INSERT INTO usage_quotas (user_id, role, tool_name, time_window, max_calls, max_credits,"
        " updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7)"
        f" ON CONFLICT ({scope}, tool_name, time_window) WHERE {scope} IS NOT NULL"
        " DO UPDATE SET max_calls = excluded.max_calls, max_credits = excluded.max_credits,"
        " updated_at = excluded.updated_at",
        quota.scope.user_id,
        quota.scope.role,
        quota.tool_name,
        quota.window,
        quota.max_calls,
        quota.max_credits,
        quota.updated_at,
    )


async def delete_quota(conn: Connection, scope: Scope, tool_name: str, window: Window) -> bool:
    """Deletes a quota; False if there is none."""
    owner = "user_id" if scope.user_id is not None else "role"
    return bool(
        await conn.fetchval(
            f"DELETE FROM usage_quotas WHERE {owner} = $1 AND tool_name = $2 AND time_window = $3"
            " RETURNING true",
            scope.user_id or scope.role,
            tool_name,
            window,
        )
    )


async def count_user(conn: Connection, user_id: UUID) -> int:
    """Returns how many quotas a user has."""
    return int(await conn.fetchval("SELECT count(*) FROM usage_quotas WHERE user_id = $1", user_id))


async def lock_role(conn: Connection, role: Role) -> None:
    """Lets nobody else change the quotas of a role meanwhile."""
    await conn.execute("SELECT FROM usage_roles WHERE role = $1 FOR NO KEY UPDATE", role)


async def count_role(conn: Connection, role: Role) -> None:
    """Writes down how many quotas a role has, for whoever locks an account."""
    await conn.execute(
        "UPDATE usage_roles SET quotas = (SELECT count(*) FROM usage_quotas WHERE role = $1)"
        " WHERE role = $1",
        role,
    )


async def find_quotas(
    conn: Connection,
    user_ids: Sequence[UUID],
    roles: Iterable[Role],
    tools: Sequence[str] | None = None,
) -> list[Quota]:
    """Returns the quotas of users and of roles, for some tools and all at once, or for any."""
    rows = await conn.fetch(
        "SELECT q.* FROM unnest($1::uuid[]) AS u (id) CROSS JOIN LATERAL ("
        f"  SELECT {_QUOTA} FROM usage_quotas q WHERE q.user_id = u.id"
        "  AND ($3::text[] IS NULL OR q.tool_name = ANY($3)) ORDER BY q.tool_name) AS q"
        " UNION ALL SELECT q.* FROM unnest($2::text[]) AS r (name) CROSS JOIN LATERAL ("
        f"  SELECT {_QUOTA} FROM usage_quotas q WHERE q.role = r.name"
        "  AND ($3::text[] IS NULL OR q.tool_name = ANY($3)) ORDER BY q.tool_name) AS q",
        user_ids,
        sorted(set(roles)),
        None if tools is None else [EVERY_TOOL, *tools],
    )
    return [_quota(row) for row in rows]


async def find_counters(
    conn: Connection, user_ids: Sequence[UUID], tools: Sequence[str] | None = None
) -> list[Counter]:
    """Returns what users used in the newest windows, for some tools and all at once, or for any."""
    rows = await conn.fetch(
        "SELECT w.user_id, w.tool_name, w.time_window, w.period, w.calls, w.credits"
        " FROM unnest($1::uuid[]) AS u (id) JOIN usage_windows w"
        " ON w.user_id = ANY (ARRAY[u.id])"
        " WHERE $2::text[] IS NULL OR w.tool_name = ANY($2)",
        user_ids,
        None if tools is None else [EVERY_TOOL, *tools],
    )
    return [
        Counter(
            row["user_id"],
            row["tool_name"],
            Window(row["time_window"]),
            row["period"],
            row["calls"],
            row["credits"],
        )
        for row in rows
    ]


async def write_counters(conn: Connection, counters: Sequence[Counter]) -> None:
    """Writes what is used, under the locks of the accounts."""
    await conn.execute(
        "INSERT INTO usage_windows (user_id, tool_name, time_window, period, calls, credits)"
        " SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[],"
        " $6::bigint[])"
        " ON CONFLICT (user_id, tool_name, time_window) DO UPDATE"
        " SET period = excluded.period, calls = excluded.calls, credits = excluded.credits",
        [counter.user_id for counter in counters],
        [counter.tool_name for counter in counters],
        [counter.window for counter in counters],
        [counter.period for counter in counters],
        [counter.calls for counter in counters],
        [counter.credits for counter in counters],
    )


def _quota(row: Record) -> Quota:
    return Quota(
        Scope(row["user_id"], Role(row["role"]) if row["role"] else None),
        row["tool_name"],
        Window(row["time_window"]),
        row["max_calls"],
        row["max_credits"],
        row["updated_at"],
    )
