"""Sessions: one row each, however often it is refreshed."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection
from services.auth.domain.sessions import Acr, Session

_SESSION = (
    "id, user_id, counter, created_at, expires_at, refreshed_at, ended_at, end_reason, amr, acr,"
    " authenticated_at"
)


async def insert_session(
    conn: Connection,
    session: Session,
    *,
    device: str,
    address: str | None,
    access_token_id: str,
    refresh_digest: str,
) -> None:
    await conn.execute(
        "INSERT INTO sessions (id, user_id, access_token, refresh_token, created_at, expires_at,"
        " refreshed_at, last_seen_at, amr, acr, device, address)"
        " VALUES ($1, $2, $3, $4, $5, $6, $5, $5, $7, $8, $9, $10)",
        session.id,
        session.user_id,
        access_token_id,
        refresh_digest,
        session.created_at,
        session.expires_at,
        session.amr,
        session.acr,
        device,
        address,
    )


async def get_session(conn: Connection, session_id: UUID) -> Session | None:
    row = await conn.fetchrow(f"SELECT {_SESSION} FROM sessions WHERE id = $1", session_id)
    return _session(row) if row else None


async def lock_session(conn: Connection, session_id: UUID) -> Session | None:
    row = await conn.fetchrow(
        f"SELECT {_SESSION} FROM sessions WHERE id = $1 FOR UPDATE", session_id
    )
    return _session(row) if row else None


async def rotate_session(
    conn: Connection,
    *,
    session_id: UUID,
    counter: int,
    refresh_digest: str,
    access_token_id: str,
    idle_since: datetime,
    now: datetime,
) -> Session | None:
    """Moves a living session from `counter` to the next one; None if it is not there any more."""
    row = await conn.fetchrow(
        "UPDATE sessions SET counter = counter + 1, refresh_token = $3, access_token = $4,"
        " refreshed_at = $6, last_seen_at = $6"
        " WHERE id = $1 AND counter = $2 AND ended_at IS NULL AND expires_at > $6"
        f" AND refreshed_at > $5 RETURNING {_SESSION}",
        session_id,
        counter,
        refresh_digest,
        access_token_id,
        idle_since,
        now,
    )
    return _session(row) if row else None


async def step_up_session(
    conn: Connection,
    session_id: UUID,
    *,
    user_id: UUID,
    amr: Sequence[str],
    acr: Acr,
    now: datetime,
) -> Session | None:
    """Stamps a new proof on a living session, adding to its methods; None if it is over."""
    row = await conn.fetchrow(
        "UPDATE sessions SET authenticated_at = $5, acr = $4,"
        " amr = amr || ARRAY(SELECT new FROM unnest($3::text[]) AS new WHERE new <> ALL (amr))"
        " WHERE id = $1 AND user_id = $2 AND ended_at IS NULL AND expires_at > $5"
        f" RETURNING {_SESSION}",
        session_id,
        user_id,
        amr,
        acr,
        now,
    )
    return _session(row) if row else None


async def end_session(
    conn: Connection, session_id: UUID, *, reason: str, by: str, now: datetime
) -> bool:
    """Ends a session that still lives; False if it was over already."""
    return bool(
        await conn.fetchval(
            "UPDATE sessions SET ended_at = $4, end_reason = $2, ended_by = $3"
            " WHERE id = $1 AND ended_at IS NULL RETURNING true",
            session_id,
            reason,
            by,
            now,
        )
    )


async def end_sessions(
    conn: Connection,
    user_id: UUID,
    *,
    reason: str,
    by: str,
    now: datetime,
    spare: UUID | None = None,
) -> Sequence[UUID]:
    """Ends a user's living sessions but `spare`; returns which."""
    rows = await conn.fetch(
        "UPDATE sessions SET ended_at = $4, end_reason = $2, ended_by = $3"
        " WHERE user_id = $1 AND ended_at IS NULL AND id IS DISTINCT FROM $5 RETURNING id",
        user_id,
        reason,
        by,
        now,
        spare,
    )
    return [row["id"] for row in rows]


async def ended_sessions(conn: Connection, since: datetime) -> Sequence[UUID]:
    rows = await conn.fetch("SELECT id FROM sessions WHERE ended_at > $1", since)
    return [row["id"] for row in rows]


async def delete_old_sessions(conn: Connection, before: datetime) -> int:
    """Deletes up to 1,000 sessions whose absolute lifetime ended before; returns how many."""
    deleted = await conn.fetchval(
        "WITH old AS (SELECT id FROM sessions WHERE expires_at < $1"
        " ORDER BY expires_at LIMIT 1000 FOR UPDATE SKIP LOCKED),"
        " gone AS (DELETE FROM sessions WHERE id IN (SELECT id FROM old) RETURNING 1)"
        " SELECT count(*) FROM gone",
        before,
    )
    return int(deleted)


def _session(row: Record) -> Session:
    return Session(
        id=row["id"],
        user_id=row["user_id"],
        counter=row["counter"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        refreshed_at=row["refreshed_at"],
        ended_at=row["ended_at"],
        end_reason=row["end_reason"],
        amr=tuple(row["amr"]),
        acr=Acr(row["acr"]),
        authenticated_at=row["authenticated_at"],
    )
