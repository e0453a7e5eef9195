"""Sessions as they are listed, named and explained."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection
from services.auth.domain.session_list import ListedSession, Replay
from services.auth.domain.sessions import Acr, Session

_LISTED = (
    "id, user_id, counter, created_at, expires_at, refreshed_at, last_seen_at, device,"
    " host(address) AS address, ended_at, end_reason, ended_by, amr, acr, authenticated_at,"
    " replayed_counter, host(replay_address) AS replay_address"
)
_LIVES = "ended_at IS NULL AND expires_at > $3 AND refreshed_at > $4"


async def list_sessions(
    conn: Connection,
    user_id: UUID,
    *,
    before: UUID | None,
    now: datetime,
    idle_since: datetime,
    include_ended: bool,
    limit: int,
) -> Sequence[ListedSession]:
    """Returns a user's sessions, newest first, from just before the id `before`."""
    rows = await conn.fetch(
        f"SELECT {_LISTED} FROM sessions"
        f" WHERE user_id = $1 AND ($2::uuid IS NULL OR id < $2) AND ($5 OR ({_LIVES}))"
        " ORDER BY id DESC LIMIT $6",
        user_id,
        before,
        now,
        idle_since,
        include_ended,
        limit,
    )
    return [_listed(row) for row in rows]


async def find_session(conn: Connection, user_id: UUID, session_id: UUID) -> ListedSession | None:
    """Returns a session of this user, over or not."""
    row = await conn.fetchrow(
        f"SELECT {_LISTED} FROM sessions WHERE id = $1 AND user_id = $2", session_id, user_id
    )
    return _listed(row) if row else None


async def name_session(
    conn: Connection,
    user_id: UUID,
    session_id: UUID,
    *,
    now: datetime,
    idle_since: datetime,
    device: str,
) -> ListedSession | None:
    """Names a living session of this user; None if there is none of this id."""
    row = await conn.fetchrow(
        f"UPDATE sessions SET device = $5 WHERE id = $1 AND user_id = $2 AND {_LIVES}"
        f" RETURNING {_LISTED}",
        session_id,
        user_id,
        now,
        idle_since,
        device,
    )
    return _listed(row) if row else None


def _listed(row: Record) -> ListedSession:
    session = Session(
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
    seen = row["replayed_counter"]
    return ListedSession(
        session,
        device=row["device"],
        address=row["address"],
        last_seen_at=row["last_seen_at"],
        ended_by=row["ended_by"],
        replay=None if seen is None else Replay(seen, row["counter"], row["replay_address"]),
    )
