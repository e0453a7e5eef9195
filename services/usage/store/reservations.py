"""Reservations, leases among them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.columns import arrays, column, columns, microseconds, texts
from chassis.postgres import Connection
from services.usage.domain.accounts import Draw
from services.usage.domain.holds import Hold, State
from services.usage.domain.requests import Fence

_HOLD = (
    "r.id, r.user_id, r.amount, r.tool_name, r.created_at, r.first_expires_at, r.expires_at,"
    " r.grant_ids, r.drawn, r.available, r.state, r.committed, r.committed_tool, r.resolved_at,"
    " r.resolved_available, r.holder, r.fence"
)


async def find_owners(conn: Connection, ids: Sequence[UUID]) -> set[UUID]:
    """Returns whose reservations these are; an owner never changes."""
    rows = await conn.fetch(
        "SELECT DISTINCT r.user_id FROM unnest($1::uuid[]) AS h (id)"
        " JOIN credit_reservations r ON r.id = ANY (ARRAY[h.id])",
        ids,
    )
    return {row["user_id"] for row in rows}


async def find_holds(conn: Connection, ids: Sequence[UUID]) -> list[Hold]:
    """Returns those of the reservations that there are."""
    rows = await conn.fetch(
        f"SELECT {_HOLD} FROM unnest($1::uuid[]) AS h (id)"
        " JOIN credit_reservations r ON r.id = ANY (ARRAY[h.id])",
        ids,
    )
    return [_hold(row) for row in rows]


async def holds_over(conn: Connection, user_ids: Sequence[UUID], now: datetime) -> list[Hold]:
    """Returns the users' open holds whose time is over."""
    rows = await conn.fetch(
        "SELECT r.* FROM unnest($1::uuid[]) AS u (id) CROSS JOIN LATERAL ("
        f"  SELECT {_HOLD} FROM credit_reservations r WHERE r.user_id = u.id"
        "  AND r.state = 'open' AND r.expires_at <= $2 ORDER BY r.expires_at) AS r",
        user_ids,
        now,
    )
    return [_hold(row) for row in rows]


async def next_ends(
    conn: Connection, user_ids: Sequence[UUID], now: datetime
) -> dict[UUID, datetime]:
    """Returns by user when the first open hold ends that is not over; absent without one."""
    rows = await conn.fetch(
        "SELECT u.id, r.expires_at FROM unnest($1::uuid[]) AS u (id), LATERAL ("
        " SELECT expires_at FROM credit_reservations"
        " WHERE user_id = u.id AND state = 'open' AND expires_at > $2"
        " ORDER BY expires_at LIMIT 1) AS r",
        user_ids,
        now,
    )
    return {row["id"]: row["expires_at"] for row in rows}


async def write_holds(conn: Connection, holds: Iterable[Hold], new: Collection[UUID]) -> None:
    """Writes holds in one statement; `new` are the ids of those that are not there yet."""
    written = list(holds)
    await conn.execute(
        _WRITE_HOLDS,
        *columns(written, "id", "user_id", "amount", "available"),
        *columns(written, "committed", "resolved_available"),
        column(hold.fence or None for hold in written),
        column(hold.id in new for hold in written),
        microseconds(hold.created_at for hold in written),
        microseconds(hold.first_expires_at for hold in written),
        microseconds(hold.expires_at for hold in written),
        microseconds(hold.resolved_at for hold in written),
        texts(hold.state for hold in written),
        texts(hold.tool_name or None for hold in written),
        texts(hold.committed_tool for hold in written),
        texts(hold.holder or None for hold in written),
        arrays([draw.grant_id for draw in hold.draws] for hold in written),
        arrays([draw.amount for draw in hold.draws] for hold in written),
    )


_WRITE_HOLDS = """
WITH hold AS (
    SELECT id, user_id, amount, available, committed, resolved_available, fence, is_new,
        to_timestamp(created / 1e6::float8) AS created_at,
        to_timestamp(first_expires / 1e6::float8) AS first_expires_at,
        to_timestamp(expires / 1e6::float8) AS expires_at,
        to_timestamp(resolved / 1e6::float8) AS resolved_at,
        state, tool_name, committed_tool, holder, grants, drawn
    FROM unnest(
        $1::text::uuid[], $2::text::uuid[], $3::text::bigint[], $4::text::bigint[],
        $5::text::bigint[], $6::text::bigint[], $7::text::bigint[], $8::text::boolean[],
        $9::text::bigint[], $10::text::bigint[], $11::text::bigint[], $12::text::bigint[],
        $13::text::text[], $14::text::text[], $15::text::text[], $16::text::text[],
        $17::text::text[], $18::text::text[]
    ) AS s (
        id, user_id, amount, available, committed, resolved_available, fence, is_new, created,
        first_expires, expires, resolved, state, tool_name, committed_tool, holder, grants, drawn
    )
), changed AS (
    UPDATE credit_reservations r
    SET expires_at = s.expires_at, state = s.state, committed = s.committed,
        committed_tool = s.committed_tool, resolved_at = s.resolved_at,
        resolved_available = s.resolved_available
    FROM hold s
    WHERE r.id = ANY (ARRAY[s.id]) AND NOT s.is_new
)
INSERT INTO credit_reservations (
    id, user_id, amount, available, committed, resolved_available, fence, created_at,
    first_expires_at, expires_at, resolved_at, state, tool_name, committed_tool, holder, grant_ids,
    drawn
)
SELECT id, user_id, amount, available, committed, resolved_available, fence, created_at,
    first_expires_at, expires_at, resolved_at, state, tool_name, committed_tool, holder,
    grants::uuid[], drawn::bigint[]
FROM hold WHERE is_new
"""


async def find_fences(
    conn: Connection, holders: Collection[tuple[UUID, str]]
) -> dict[tuple[UUID, str], Fence]:
    """Returns the last lease of each of the holders that had one."""
    rows = await conn.fetch(
        "SELECT l.user_id, l.holder, l.fence, l.lease_id"
        " FROM unnest($1::uuid[], $2::text[]) AS h (user_id, holder)"
        " JOIN credit_lease_holders l"
        " ON l.user_id = ANY (ARRAY[h.user_id]) AND l.holder = h.holder",
        [user_id for user_id, _ in holders],
        [holder for _, holder in holders],
    )
    return {(row["user_id"], row["holder"]): Fence(row["fence"], row["lease_id"]) for row in rows}


async def write_fences(conn: Connection, fences: Mapping[tuple[UUID, str], Fence]) -> None:
    """Writes the last leases of holders, under the locks of their accounts."""
    await conn.execute(
        "INSERT INTO credit_lease_holders (user_id, holder, fence, lease_id)"
        " SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::uuid[])"
        " ON CONFLICT (user_id, holder)"
        " DO UPDATE SET fence = excluded.fence, lease_id = excluded.lease_id",
        [user_id for user_id, _ in fences],
        [holder for _, holder in fences],
        [fence.number for fence in fences.values()],
        [fence.lease_id for fence in fences.values()],
    )


async def forget_holds(
    conn: Connection, made_before: datetime, resolved_before: datetime, most: int
) -> int:
    """
    Deletes reservations nobody can ask for again; returns how many.

    Up to `most` that were made and given back before two instants, and as many whose
    calls are in no month that is kept.
    """
    return int(
        await conn.fetchval(
            "SELECT usage_forget_reservations($1, $2, $3)", made_before, resolved_before, most
        )
    )


def _hold(row: Record) -> Hold:
    return Hold(
        row["id"],
        row["user_id"],
        row["amount"],
        row["tool_name"] or "",
        row["created_at"],
        row["first_expires_at"],
        row["expires_at"],
        tuple(map(Draw, row["grant_ids"], row["drawn"])),
        row["available"],
        State(row["state"]),
        row["committed"],
        row["committed_tool"],
        row["resolved_at"],
        row["resolved_available"],
        row["holder"] or "",
        row["fence"] or 0,
    )
