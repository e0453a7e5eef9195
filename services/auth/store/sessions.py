"""Sessions: one row each, however often it is refreshed."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection
from services.auth.domain.sessions import Acr, EndReason, Session
from services.auth.domain.users import User
from services.auth.store.users import USER, to_user

_SESSION = (
    "id, user_id, counter, created_at, expires_at, refreshed_at, ended_at, end_reason, amr, acr,"
    " authenticated_at, impersonated_by"
)


async def open_session(
    conn: Connection,
    session: Session,
    *,
    device: str,
    address: str | None,
    access_token_id: str,
    refresh_digest: str,
    verified: str | None,
    new_hash: str | None,
) -> User | None:
    """
    Inserts a session and stamps the account's login, both or neither, in one statement.

    None if the account is banned, erased or gone, if its password hash is not the
    `verified` one any more, or if it has a second factor and the session is of one
    alone. `new_hash` replaces a hash of outdated parameters.
    """
    row = await conn.fetchrow(
        "WITH person AS (UPDATE users SET last_login = $5,"
        "  password_hash = coalesce($12, password_hash)"
        " WHERE id = $2 AND erased_at IS NULL AND (banned_at IS NULL OR banned_until <= $5)"
        "  AND ($11::text IS NULL OR password_hash = $11)"
        "  AND (mfa_enabled_at IS NULL OR $8 = 'aal2')"
        f" RETURNING {USER}),"
        " opened AS (INSERT INTO sessions (id, user_id, access_token, refresh_token, created_at,"
        "  expires_at, refreshed_at, last_seen_at, amr, acr, device, address, authenticated_at)"
        " SELECT $1, id, $3, $4, $5, $6, $5, $5, $7, $8, $9, $10, $13 FROM person)"
        f" SELECT {USER} FROM person",
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
        verified,
        new_hash,
        session.authenticated_at,
    )
    return to_user(row) if row else None


async def insert_session(
    conn: Connection,
    session: Session,
    *,
    device: str,
    address: str | None,
    access_token_id: str,
    refresh_digest: str,
) -> None:
    """Inserts a session that is no login of its user: an administrator acts as them."""
    await conn.execute(
        "INSERT INTO sessions (id, user_id, access_token, refresh_token, created_at, expires_at,"
        " refreshed_at, last_seen_at, amr, acr, device, address, impersonated_by)"
        " VALUES ($1, $2, $3, $4, $5, $6, $5, $5, $7, $8, $9, $10, $11)",
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
        session.impersonated_by,
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
    address: str | None,
    now: datetime,
) -> Session | None:
    """
    Moves a living session from `counter` to the next one; None if it is not there any more.

    It was then seen now and at `address`, if that is known.
    """
    row = await conn.fetchrow(
        "UPDATE sessions SET counter = counter + 1, refresh_token = $3, access_token = $4,"
        " refreshed_at = $6, last_seen_at = $6, address = coalesce($7, address)"
        " WHERE id = $1 AND counter = $2 AND ended_at IS NULL AND expires_at > $6"
        f" AND refreshed_at > $5 RETURNING {_SESSION}",
        session_id,
        counter,
        refresh_digest,
        access_token_id,
        idle_since,
        now,
        address,
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


async def end_replayed(
    conn: Connection, session_id: UUID, *, seen: int, address: str | None, now: datetime
) -> None:
    """Ends a locked session because the refresh token of the number `seen` came back."""
    await conn.execute(
        "UPDATE sessions SET ended_at = $2, end_reason = $3, ended_by = 'system',"
        " replayed_counter = $4, replay_address = $5 WHERE id = $1 AND ended_at IS NULL",
        session_id,
        now,
        EndReason.REPLAY,
        seen,
        address,
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
    """
    Ends a user's living sessions but `spare`; returns which.

    Those in which the user acts as somebody else are the user's too: whoever is
    put out must not be left with them.
    """
    which = "(user_id = $1 OR impersonated_by = $1)"
    return await _end(conn, which, user_id, reason=reason, by=by, now=now, spare=spare)


async def end_impersonations(
    conn: Connection, user_id: UUID, *, reason: str, by: str, now: datetime
) -> Sequence[UUID]:
    """Ends the living sessions in which a user acts as somebody or somebody as it."""
    which = "impersonated_by IS NOT NULL AND (impersonated_by = $1 OR user_id = $1)"
    return await _end(conn, which, user_id, reason=reason, by=by, now=now)


async def _end(
    conn: Connection,
    which: str,
    user_id: UUID,
    *,
    reason: str,
    by: str,
    now: datetime,
    spare: UUID | None = None,
) -> Sequence[UUID]:
    # Two callers may end the same sessions, one as the user's and one as the impersonator's.
    rows = await conn.fetch(
        f"WITH living AS (SELECT id FROM sessions WHERE ended_at IS NULL AND {which}"
        " AND id IS DISTINCT FROM $5 ORDER BY id FOR NO KEY UPDATE)"
        " UPDATE sessions SET ended_at = $4, end_reason = $2, ended_by = $3"
        " FROM living WHERE sessions.id = living.id RETURNING sessions.id",
        user_id,
        reason,
        by,
        now,
        spare,
    )
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
        impersonated_by=row["impersonated_by"],
    )
