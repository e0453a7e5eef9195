"""How accounts stand beside their credits, and what holds for every account of a role."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection
from services.usage.domain.standing import Role, Standing

if TYPE_CHECKING:
    from services.usage.domain.book import Book


# A look-up, for a flush reads hundreds.
_ROLES = {role.value: role for role in Role}


def read_standing(row: Record) -> Standing:
    return Standing(
        _ROLES[row["role"]],
        row["role_sequence"],
        row["time_zone"],
        row["quotas"],
        row["allowance_until"],
        row["allowance_granted"],
        row["allowance"],
        row["role_quotas"],
    )


async def write_standings(conn: Connection, books: Sequence["Book"]) -> None:
    """Writes how locked accounts stand; only their credits are written elsewhere."""
    if not books:
        return
    await conn.execute(
        "UPDATE credit_accounts a SET role = s.role, role_sequence = s.role_sequence,"
        " time_zone = s.time_zone, quotas = s.quotas, allowance_until = s.allowance_until,"
        " allowance_granted = s.allowance_granted"
        " FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::int[],"
        " $6::timestamptz[], $7::bigint[]) AS s (user_id, role, role_sequence, time_zone, quotas,"
        " allowance_until, allowance_granted)"
        " WHERE a.user_id = ANY (ARRAY[s.user_id])",
        [book.user_id for book in books],
        [book.standing.role for book in books],
        [book.standing.role_sequence for book in books],
        [book.standing.time_zone for book in books],
        [book.standing.quotas for book in books],
        [book.standing.allowance_until for book in books],
        [book.standing.allowance_granted for book in books],
    )


async def of_role(conn: Connection, role: Role) -> tuple[int, int]:
    """Returns the allowance of a role and how many quotas it has."""
    row = await conn.fetchrow("SELECT allowance, quotas FROM usage_roles WHERE role = $1", role)
    return row["allowance"], row["quotas"]


async def set_allowances(conn: Connection, allowances: Mapping[Role, int]) -> None:
    """Sets the monthly allowance of each role, in credits."""
    await conn.execute(
        "UPDATE usage_roles r SET allowance = s.allowance"
        " FROM unnest($1::text[], $2::bigint[]) AS s (role, allowance)"
        " WHERE r.role = s.role AND r.allowance <> s.allowance",
        list(allowances),
        list(allowances.values()),
    )


async def find_due(conn: Connection, now: datetime, limit: int) -> list[UUID]:
    """Returns accounts of which something begins, expires or is to be granted by now."""
    rows = await conn.fetch(
        "SELECT user_id FROM credit_accounts WHERE due_at <= $1 ORDER BY due_at LIMIT $2",
        now,
        limit,
    )
    if not rows:
        # Those whose role had no allowance when they were last written.
        rows = await conn.fetch(
            "SELECT a.user_id FROM usage_roles r CROSS JOIN LATERAL ("
            "  SELECT user_id FROM credit_accounts WHERE role = r.role AND allowance_until <= $1"
            "  AND closed_at IS NULL ORDER BY allowance_until LIMIT $2) AS a"
            " WHERE r.allowance > 0 LIMIT $2",
            now,
            limit,
        )
    return [row["user_id"] for row in rows]
