"""Reservations, leases among them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.columns import column
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
        " JOIN credit_reservations r ON r.id = h.id",
        ids,
    )
    return {row["user_id"] for row in rows}


async def find_holds(conn: Connection, ids: Sequence[UUID]) -> list[Hold]:
    """Returns those of the reservations that there are."""
    rows = await conn.fetch(
        f"SELECT {_HOLD} FROM unnest($1::uuid[]) AS h (id)"
        " JOIN credit_reservations r ON r.id = h.id",
        ids,
    )
    return [_hold(row) for row in rows]


async def holds_over(conn: Connection, user_ids: Sequence[UUID], now: datetime) -> list[Hold]:
    """Returns the users' open holds whose time is over."""
    rows = await conn.fetch(
        f"SELECT {_HOLD} FROM unnest($1::uuid[]) AS u (id)"
        " JOIN credit_reservations r ON r.user_id = u.id"
        " WHERE r.state = 'open' AND r.expires_at <= $2",
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
        [hold.id for hold in written],
        [hold.user_id for hold in written],
        [hold.amount for hold in written],
        [hold.tool_name or None for hold in written],
        [hold.created_at for hold in written],
        [hold.first_expires_at for hold in written],
        [hold.expires_at for hold in written],
        [column(draw.grant_id for draw in hold.draws) for hold in written],
        [column(draw.amount for draw in hold.draws) for hold in written],
        [hold.available for hold in written],
        [hold.state for hold in written],
        [hold.committed for hold in written],
        [hold.committed_tool for hold in written],
        [hold.resolved_at for hold in written],
        [hold.resolved_available for hold in written],
        [hold.holder or None for hold in written],
        [hold.fence or None for hold in written],
        [hold.id in new for hold in written],
    )


# The statement's arrays are one row long each; an array within is passed as text.
_WRITE_HOLDS = """
WITH hold AS (
    SELECT id, user_id, amount, tool_name, created_at, first_expires_at, expires_at, grants, drawn,
        available, state, committed, committed_tool, resolved_at, resolved_available, holder,
        fence, is_new
    FROM unnest(
        $1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::timestamptz[], $6::timestamptz[],
        $7::timestamptz[], $8::text[], $9::text[], $10::bigint[], $11::text[], $12::bigint[],
        $13::text[], $14::timestamptz[], $15::bigint[], $16::text[], $17::bigint[], $18::boolean[]
    ) AS s (
        id, user_id, amount, tool_name, created_at, first_expires_at, expires_at, grants, drawn,
        available, state, committed, committed_tool, resolved_at, resolved_available, holder,
        fence, is_new
    )
), changed AS (
    UPDATE credit_reservations r
    SET expires_at = s.expires_at, state = s.state, committed = s.committed,
        committed_tool = s.committed_tool, resolved_at = s.resolved_at,
        resolved_available = s.resolved_available
    FROM hold s
    WHERE r.id = s.id AND NOT s.is_new
)
INSERT INTO credit_reservations (
    id, user_id, amount, tool_name, created_at, first_expires_at, expires_at, grant_ids, drawn,
    available, state, committed, committed_tool, resolved_at, resolved_available, holder, fence
)
SELECT id, user_id, amount, tool_name, created_at, first_expires_at, expires_at, grants::uuid[],
    drawn::bigint[], available, state, committed, committed_tool, resolved_at, resolved_available,
    holder, fence
FROM hold WHERE is_new
"""


async def find_fences(
    conn: Connection, holders: Collection[tuple[UUID, str]]
) -> dict[tuple[UUID, str], Fence]:
    """Returns the last lease of each of the holders that had one."""
    rows = await conn.fetch(
        "SELECT l.user_id, l.holder, l.fence, l.lease_id"
        " FROM unnest($1::uuid[], $2::text[]) AS h (user_id, holder)"
        " JOIN credit_lease_holders l ON l.user_id = h.user_id AND l.holder = h.holder",
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
