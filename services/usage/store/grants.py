"""Grants of credits."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from chassis.columns import column
from chassis.postgres import Connection
from services.usage.domain.grants import Category, Grant, Terms

GRANT = (
    "g.id, g.user_id, g.source, g.source_ref, g.amount, g.priority, g.category, g.remaining,"
    " g.created_at, g.effective_at, g.expires_at, g.activated_at, g.voided_at,"
    " g.granted_by"
)
GRANT_COLUMNS = GRANT.count(",") + 1

_CATEGORIES = {category.value: category for category in Category}


async def insert_grant(conn: Connection, grant: Grant) -> bool:
    """
    Inserts a grant that does not count yet.

    False if the user has one of this source and source_ref.
    """
    terms = grant.terms
    return bool(
        await conn.fetchval(
            "INSERT INTO credit_grants (id, user_id, source, source_ref, amount, remaining,"
            " priority, category, effective_at, expires_at, created_at, granted_by)"
            " VALUES ($1, $2, $3, $4, $5, $5, $6, $7, $8, $9, $10, $11)"
            " ON CONFLICT (user_id, source, source_ref) DO NOTHING RETURNING true",
            grant.id,
            grant.user_id,
            terms.source,
            terms.source_ref,
            terms.amount,
            terms.priority,
            terms.category,
            grant.effective_at,
            terms.expires_at,
            grant.created_at,
            grant.granted_by,
        )
    )


async def insert_grants(conn: Connection, grants: Sequence[Grant]) -> None:
    """Inserts grants that do not count yet; none of them may be there."""
    if not grants:
        return
    await conn.execute(
        "INSERT INTO credit_grants (id, user_id, source, source_ref, amount, remaining,"
        " priority, category, effective_at, expires_at, created_at)"
        " SELECT id, user_id, source, source_ref, amount, amount,"
        " priority, category, effective_at, expires_at, created_at"
        " FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[],"
        " $6::smallint[], $7::text[], $8::timestamptz[], $9::timestamptz[], $10::timestamptz[])"
        " AS s (id, user_id, source, source_ref, amount, priority, category, effective_at,"
        " expires_at, created_at)",
        [grant.id for grant in grants],
        [grant.user_id for grant in grants],
        [grant.terms.source for grant in grants],
        [grant.terms.source_ref for grant in grants],
        [grant.terms.amount for grant in grants],
        [grant.terms.priority for grant in grants],
        [grant.terms.category for grant in grants],
        [grant.effective_at for grant in grants],
        [grant.terms.expires_at for grant in grants],
        [grant.created_at for grant in grants],
    )


async def find_grant(conn: Connection, user_id: UUID, source: str, source_ref: str) -> Grant | None:
    row = await conn.fetchrow(
        f"SELECT {GRANT} FROM credit_grants g"
        " WHERE user_id = $1 AND source = $2 AND source_ref = $3",
        user_id,
        source,
        source_ref,
    )
    return grant_of(row) if row else None


async def list_grants(conn: Connection, user_id: UUID, ids: Sequence[UUID]) -> list[Grant]:
    """Returns a user's grants among these ids, whatever is left of them."""
    rows = await conn.fetch(
        f"SELECT {GRANT} FROM credit_grants g WHERE id = ANY($2::uuid[]) AND user_id = $1",
        user_id,
        ids,
    )
    return [grant_of(row) for row in rows]


async def sign_void(conn: Connection, grant_id: UUID, actor: str, note: str) -> None:
    """Writes who voided a grant, and why: one that never began has no entry to say so."""
    await conn.execute(
        "UPDATE credit_grants SET voided_by = $2, void_note = $3 WHERE id = $1",
        grant_id,
        actor,
        note,
    )


def open_grants_of(user_id: str) -> str:
    """Returns the query for what `open_grants` finds of one user, named by a column beside it."""
    return (
        f"SELECT {GRANT} FROM credit_grants g WHERE g.user_id = {user_id}"
        " AND g.depleted_at IS NULL AND g.voided_at IS NULL ORDER BY g.priority"
    )


async def open_grants(conn: Connection, user_ids: Sequence[UUID]) -> list[Grant]:
    """Returns the users' grants that have something left, those still to begin among them."""
    rows = await conn.fetch(
        "SELECT g.* FROM unnest($1::text::uuid[]) AS u (id) CROSS JOIN LATERAL ("
        f"{open_grants_of('u.id')}) AS g",
        column(user_ids),
    )
    return [grant_of(row) for row in rows]


async def find_grants(conn: Connection, ids: Sequence[UUID]) -> list[Grant]:
    """Returns grants by their ids, whatever is left of them."""
    rows = await conn.fetch(
        f"SELECT {GRANT} FROM unnest($1::uuid[]) AS i (id) JOIN credit_grants g"
        " ON g.id = ANY (ARRAY[i.id])",
        ids,
    )
    return [grant_of(row) for row in rows]


def grant_of(row: Sequence[Any]) -> Grant:
    """Returns the grant that the columns of GRANT are."""
    # Unpacked and not by name: a flush reads hundreds.
    grant_id, user_id, source, source_ref, amount, priority, category, *rest = row
    remaining, created_at, effective_at, expires_at, activated_at, voided_at, granted_by = rest
    terms = Terms(
        source, source_ref, amount, priority, _CATEGORIES[category], effective_at, expires_at
    )
    return Grant(
        grant_id,
        user_id,
        terms,
        remaining,
        created_at,
        effective_at,
        activated_at,
        voided_at,
        granted_by,
    )
