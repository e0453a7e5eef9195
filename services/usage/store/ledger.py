"""Entries of the ledger as they are read back, and what corrections and limits write."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection, on_constraint
from services.usage.domain.accounts import Draw, Kind, Posting
from services.usage.domain.corrections import Charge, Charged, committed_draws
from services.usage.errors import OverdraftInUse

_ENTRY = (
    "id, kind, amount, balance_after, version, created_at, grant_ids, drawn,"
    " grant_id, reservation_id, reverses_id, actor, note"
)
# The calls of an entry happened up to 35 days before it and 5 minutes after; a flush may wait.
CALLS_BEFORE, CALLS_AFTER = timedelta(days=36), timedelta(hours=1)


async def list_entries(
    conn: Connection, user_id: UUID, *, before: int | None, limit: int
) -> list[Posting]:
    """Returns a user's entries, newest first, from just before a version."""
    rows = await conn.fetch(
        f"SELECT {_ENTRY} FROM credit_entries"
        " WHERE user_id = $1 AND version < coalesce($2, 9223372036854775807)"
        " ORDER BY version DESC LIMIT $3",
        user_id,
        before,
        limit,
    )
    return [_posting(row) for row in rows]


async def balance_at(conn: Connection, user_id: UUID, at: datetime) -> tuple[int, int]:
    """
    Returns balance and version after the last entry at or before an instant.

    Zeros before the first one. Walks credit_entries_version_key backwards.
    """
    row = await conn.fetchrow(
        "SELECT balance_after, version FROM credit_entries"
        " WHERE user_id = $1 AND created_at <= $2 ORDER BY version DESC LIMIT 1",
        user_id,
        at,
    )
    return (row["balance_after"], row["version"]) if row else (0, 0)


async def find_charge(
    conn: Connection, user_id: UUID, *, event_id: UUID | None, entry_id: UUID | None
) -> Charge | None:
    """
    Returns what paid for one tool call of a user, or for all those of one entry.

    None where tool_usage has no such call, be it that it is archived.
    """
    if event_id is not None:
        entry_id = await conn.fetchval(
            "SELECT entry_id FROM tool_usage WHERE id = $1 AND user_id = $2", event_id, user_id
        )
    entry = await conn.fetchrow(_PAID, entry_id, user_id)
    if entry is None:
        return None
    since, until = entry["since"] - CALLS_BEFORE, entry["created_at"] + CALLS_AFTER
    rows = await conn.fetch(_CHARGED, user_id, since, until, entry_id)
    events = [Charged(*row) for row in rows]
    wanted = tuple(event for event in events if event_id in (None, event.event_id))
    if not wanted:
        return None
    return Charge(entry["id"], entry["cost"], entry["reversed"], _paid_from(entry), wanted)


# A reservation's call has the time of its id, and may wait for its commit as long as it is
# extended: its calls are looked for from when it was made. One that is forgotten is of a month
# that is not kept.
_PAID = """
SELECT e.id, e.grant_ids, e.drawn, e.created_at, r.grant_ids AS held_ids, r.drawn AS held,
    coalesce(r.committed, -e.amount) AS cost, coalesce(r.created_at, e.created_at) AS since,
    (
        SELECT coalesce(sum(c.credits), 0)::bigint FROM usage_corrections c
        WHERE c.entry_id = e.id
    ) AS reversed
FROM credit_entries e LEFT JOIN credit_reservations r ON r.id = ANY (ARRAY[e.reservation_id])
WHERE e.id = $1 AND e.user_id = $2 AND (e.kind = 'use' OR e.kind = 'commit' AND r.id IS NOT NULL)
"""

_CHARGED = """
SELECT u.id, u.tool_name, u."timestamp", u.credits_used, (
    SELECT coalesce(sum(c.credits), 0)::bigint FROM usage_corrections c
    WHERE c.entry_id = u.entry_id AND c.event_id = u.id
)
FROM tool_usage u
WHERE u.user_id = $1 AND u."timestamp" BETWEEN $2 AND $3 AND u.entry_id = $4
ORDER BY u."timestamp", u.id
"""


async def write_corrections(
    conn: Connection,
    user_id: UUID,
    reversal: Posting,
    parts: Iterable[tuple[Charged, int]],
) -> None:
    """Writes what each call got back by an entry, and takes it out of the hourly sums."""
    given = list(parts)
    await conn.execute(
        _WRITE_CORRECTIONS,
        reversal.reverses_id,
        reversal.id,
        user_id,
        reversal.at,
        [event.event_id for event, _ in given],
        [event.tool_name for event, _ in given],
        [event.time.replace(minute=0, second=0, microsecond=0) for event, _ in given],
        [part for _, part in given],
    )


_WRITE_CORRECTIONS = """
WITH given AS (
    SELECT * FROM unnest($5::uuid[], $6::text[], $7::timestamptz[], $8::bigint[])
        AS g (event_id, tool_name, hour, credits)
), summed AS (
    SELECT tool_name, hour, sum(credits)::bigint AS credits FROM given GROUP BY tool_name, hour
), rolled AS (
    UPDATE usage_rollups r SET credits = r.credits - s.credits
    FROM summed s
    WHERE r.user_id = $3 AND r.hour = s.hour AND r.tool_name = s.tool_name
)
INSERT INTO usage_corrections (
    entry_id, event_id, reversal_id, user_id, tool_name, hour, credits, created_at
)
SELECT $1, event_id, $2, $3, tool_name, hour, credits, $4 FROM given
"""


async def set_overdraft_limit(conn: Connection, user_id: UUID, limit: int) -> None:
    """OverdraftInUse if the account is below it."""
    with on_constraint("credit_accounts_not_overdrawn", OverdraftInUse):
        await conn.execute(
            "UPDATE credit_accounts SET overdraft_limit = $2 WHERE user_id = $1", user_id, limit
        )


def _paid_from(entry: Record) -> tuple[Draw, ...]:
    if entry["held"] is None:
        return _draws(entry)
    held = tuple(map(Draw, entry["held_ids"], entry["held"]))
    return committed_draws(held, _draws(entry), entry["cost"])


def _draws(row: Record) -> tuple[Draw, ...]:
    return tuple(map(Draw, row["grant_ids"], row["drawn"]))


def _posting(row: Record) -> Posting:
    return Posting(
        row["id"],
        Kind(row["kind"]),
        row["amount"],
        row["balance_after"],
        row["version"],
        row["created_at"],
        _draws(row),
        row["grant_id"],
        row["reservation_id"],
        row["reverses_id"],
        row["actor"],
        row["note"],
    )
