"""Every SQL statement of the usage room."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from asyncpg import Record

from chassis.ids import uuid7_floor
from chassis.postgres import Connection, on_constraint
from services.usage.domain import Balance, Category, Draw, Event, Grant, Terms
from services.usage.errors import BalanceLimit, UserNotFound

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
HOUR_SECONDS = 3600
LATEST = datetime(9999, 12, 31, tzinfo=UTC)
_ACCOUNT = "user_id, granted, used, reserved, overdraft_limit, version, closed_at"
_GRANT = "id, user_id, source, source_ref, amount, remaining, priority, category, created_at"


@dataclass(slots=True)
class Flush:
    """The rows of one flush, column by column, as unnest takes them."""

    events: Sequence[Event]
    entry_of: Mapping[UUID, UUID]
    """User → the ledger entry that pays for its events; absent when they cost nothing."""
    spent: list[tuple[UUID, UUID, int, int, int]] = field(default_factory=list)
    """Entry, user, credits, balance after, version after."""
    draws: list[tuple[UUID, Draw]] = field(default_factory=list)
    """Entry and what it takes from a grant."""


async def open_account(conn: Connection, user_id: UUID, now: datetime) -> None:
    """Opens an account unless it is open; UserNotFound if there is no such user."""
    with on_constraint("credit_accounts_user_id_fkey", UserNotFound):
        await conn.execute(
            "INSERT INTO credit_accounts (user_id, created_at, updated_at) VALUES ($1, $2, $2)"
            " ON CONFLICT (user_id) DO NOTHING",
            user_id,
            now,
        )


async def get_balance(conn: Connection, user_id: UUID) -> Balance | None:
    row = await conn.fetchrow(f"SELECT {_ACCOUNT} FROM credit_accounts WHERE user_id = $1", user_id)
    return _balance(row) if row else None


async def lock_accounts(conn: Connection, user_ids: Iterable[UUID]) -> dict[UUID, Balance]:
    """Locks accounts in one order everywhere: unsorted batches deadlock at once."""
    rows = await conn.fetch(
        f"SELECT {_ACCOUNT} FROM credit_accounts WHERE user_id = ANY($1::uuid[])"
        " ORDER BY user_id FOR UPDATE",
        list(user_ids),
    )
    return {row["user_id"]: _balance(row) for row in rows}


async def lock_free_accounts(
    conn: Connection, user_ids: Iterable[UUID]
) -> tuple[dict[UUID, Balance], dict[UUID, Balance]]:
    """Locks the accounts nobody else holds; returns them, and the others as they stand."""
    users = list(user_ids)
    rows = await conn.fetch(
        f"SELECT {_ACCOUNT} FROM credit_accounts WHERE user_id = ANY($1::uuid[])"
        " ORDER BY user_id FOR UPDATE SKIP LOCKED",
        users,
    )
    free = {row["user_id"]: _balance(row) for row in rows}
    opened = await conn.fetch(
        f"SELECT {_ACCOUNT} FROM credit_accounts WHERE user_id = ANY($1::uuid[])", users
    )
    held = {row["user_id"]: _balance(row) for row in opened if row["user_id"] not in free}
    return free, held


async def insert_grant(conn: Connection, grant: Grant) -> bool:
    """Inserts a grant; False if the user has one of this source and source_ref."""
    terms = grant.terms
    return bool(
        await conn.fetchval(
            "INSERT INTO credit_grants (id, user_id, source, source_ref, amount, remaining,"
            " priority, category, effective_at, created_at)"
            " VALUES ($1, $2, $3, $4, $5, $5, $6, $7, $8, $8)"
            " ON CONFLICT (user_id, source, source_ref) DO NOTHING RETURNING true",
            grant.id,
            grant.user_id,
            terms.source,
            terms.source_ref,
            terms.amount,
            terms.priority,
            terms.category,
            grant.created_at,
        )
    )


async def find_grant(conn: Connection, user_id: UUID, source: str, source_ref: str) -> Grant:
    row = await conn.fetchrow(
        f"SELECT {_GRANT} FROM credit_grants"
        " WHERE user_id = $1 AND source = $2 AND source_ref = $3",
        user_id,
        source,
        source_ref,
    )
    return _grant(row)


async def add_granted(conn: Connection, grant: Grant, *, entry_id: UUID) -> Balance:
    """Adds a grant to its account, with its ledger entry; BalanceLimit past 10^15 credits."""
    with on_constraint("credit_accounts_granted_max", BalanceLimit):
        row = await conn.fetchrow(
            "WITH account AS (UPDATE credit_accounts SET granted = granted + $2,"
            f" version = version + 1, updated_at = $3 WHERE user_id = $1 RETURNING {_ACCOUNT}),"
            " entry AS (INSERT INTO credit_entries"
            " (id, user_id, kind, amount, balance_after, version, grant_id, created_at)"
            " SELECT $4, user_id, 'grant', $2, granted - used - reserved, version, $5, $3"
            " FROM account)"
            f" SELECT {_ACCOUNT} FROM account",
            grant.user_id,
            grant.terms.amount,
            grant.created_at,
            entry_id,
            grant.id,
        )
    return _balance(row)


async def close_account(
    conn: Connection, user_id: UUID, *, entry_id: UUID, now: datetime
) -> Balance | None:
    """
    Closes a locked account and voids what its grants have left, with the ledger entry.

    None, and nothing is written, if it is closed already.
    """
    row = await conn.fetchrow(
        "WITH voided AS (UPDATE credit_grants SET voided_at = $2 WHERE user_id = $1"
        "  AND depleted_at IS NULL AND voided_at IS NULL RETURNING remaining),"
        " lost AS (SELECT coalesce(sum(remaining), 0)::bigint AS credits FROM voided),"
        " account AS (UPDATE credit_accounts SET closed_at = $2, updated_at = $2,"
        "  granted = granted - lost.credits, version = version + (lost.credits > 0)::int"
        "  FROM lost WHERE user_id = $1 AND closed_at IS NULL"
        f"  RETURNING {_ACCOUNT}, lost.credits),"
        " entry AS (INSERT INTO credit_entries"
        "  (id, user_id, kind, amount, balance_after, version, created_at)"
        "  SELECT $3, user_id, 'void', -credits, granted - used - reserved, version, $2"
        "  FROM account WHERE credits > 0)"
        f" SELECT {_ACCOUNT} FROM account",
        user_id,
        now,
        entry_id,
    )
    return _balance(row) if row else None


async def find_events(conn: Connection, ids: Sequence[UUID]) -> list[Event]:
    """Returns the recorded events among these ids."""
    rows = await conn.fetch(
        # Joined, because thousands of ids in ANY take longer to plan than to find; the bounds
        # leave the other months' partitions out.
        'SELECT t.id, t.user_id, t.tool_name, t.credits_used, t."timestamp"'
        " FROM unnest($1::uuid[]) AS e (id) JOIN tool_usage t ON t.id = e.id"
        " WHERE t.id BETWEEN $2 AND $3",
        ids,
        min(ids),
        max(ids),
    )
    return [_event(row) for row in rows]


async def burnable_grants(
    conn: Connection, user_ids: Sequence[UUID]
) -> dict[UUID, list[tuple[UUID, int]]]:
    """Returns each user's grants (id, remaining) in burn order."""
    rows = await conn.fetch(
        "SELECT id, user_id, remaining FROM credit_grants"
        " WHERE user_id = ANY($1::uuid[]) AND depleted_at IS NULL AND voided_at IS NULL"
        " ORDER BY user_id, priority, expires_at NULLS LAST, category DESC, effective_at,"
        " created_at, id",
        user_ids,
    )
    grants: dict[UUID, list[tuple[UUID, int]]] = defaultdict(list)
    for row in rows:
        grants[row["user_id"]].append((row["id"], row["remaining"]))
    return grants


async def write_flush(conn: Connection, flush: Flush, now: datetime) -> None:
    """Writes events, account, grants, entries, draws and rollups of a flush in one statement."""
    rollups = _rollups(flush.events)
    await conn.execute(
        _WRITE_FLUSH,
        now,
        [event.id for event in flush.events],
        [event.user_id for event in flush.events],
        [event.tool_name for event in flush.events],
        [event.credits for event in flush.events],
        [event.time for event in flush.events],
        [flush.entry_of.get(event.user_id) for event in flush.events],
        *_columns(flush.spent, 5),
        [entry_id for entry_id, _ in flush.draws],
        [draw.grant_id for _, draw in flush.draws],
        [draw.amount for _, draw in flush.draws],
        *_columns([(*key, *sums) for key, sums in rollups.items()], 5),
    )


async def list_usage(
    conn: Connection,
    *,
    user_id: UUID,
    start: datetime | None,
    end: datetime | None,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Event]:
    """Returns a user's events, newest first, from just before the key `before`."""
    last = before or (LATEST, UUID(int=2**128 - 1))
    first, end = max(start or EARLIEST, EARLIEST), min(max(end or LATEST, EARLIEST), LATEST)
    rows = await conn.fetch(
        'SELECT id, user_id, tool_name, credits_used, "timestamp" FROM tool_usage'
        ' WHERE user_id = $1 AND "timestamp" >= $2 AND "timestamp" < $3'
        ' AND ("timestamp", id) < ($4, $5)'
        # What the ids carry is the time: these bounds leave other months' partitions out.
        " AND id >= $6 AND id <= $7"
        ' ORDER BY "timestamp" DESC, id DESC LIMIT $8',
        user_id,
        first,
        end,
        *last,
        uuid7_floor(first),
        uuid7_floor(min(end, last[0]) + timedelta(milliseconds=1)),
        limit,
    )
    return [_event(row) for row in rows]


async def make_partitions(conn: Connection, first: datetime, last: datetime) -> int:
    """Makes the month partitions that cover both instants; returns how many were new."""
    return int(await conn.fetchval("SELECT usage_make_partitions($1, $2)", first, last))


_WRITE_FLUSH = """
WITH recorded AS (
    INSERT INTO tool_usage (id, user_id, tool_name, credits_used, "timestamp", entry_id)
    SELECT * FROM unnest(
        $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::timestamptz[], $7::uuid[]
    )
), charged AS (
    UPDATE credit_accounts a
    SET used = a.used + s.credits, version = s.version, updated_at = $1
    FROM unnest($9::uuid[], $10::bigint[], $12::bigint[]) AS s (user_id, credits, version)
    WHERE a.user_id = s.user_id
), entered AS (
    INSERT INTO credit_entries (id, user_id, kind, amount, balance_after, version, created_at)
    SELECT s.id, s.user_id, 'use', -s.credits, s.balance, s.version, $1
    FROM unnest($8::uuid[], $9::uuid[], $10::bigint[], $11::bigint[], $12::bigint[])
        AS s (id, user_id, credits, balance, version)
), drawn AS (
    INSERT INTO credit_draws (entry_id, grant_id, amount)
    SELECT * FROM unnest($13::uuid[], $14::uuid[], $15::bigint[])
), burned AS (
    UPDATE credit_grants g
    SET remaining = g.remaining - d.amount,
        depleted_at = CASE WHEN g.remaining = d.amount THEN $1::timestamptz END
    FROM unnest($14::uuid[], $15::bigint[]) AS d (grant_id, amount)
    WHERE g.id = d.grant_id
)
INSERT INTO usage_rollups AS r (user_id, tool_name, hour, calls, credits)
SELECT * FROM unnest($16::uuid[], $17::text[], $18::timestamptz[], $19::bigint[], $20::bigint[])
ON CONFLICT (user_id, hour, tool_name)
DO UPDATE SET calls = r.calls + excluded.calls, credits = r.credits + excluded.credits
"""


def _rollups(events: Iterable[Event]) -> dict[tuple[UUID, str, datetime], list[int]]:
    sums: dict[tuple[UUID, str, int], list[int]] = defaultdict(lambda: [0, 0])
    for event in events:
        total = sums[event.user_id, event.tool_name, int(event.time.timestamp()) // HOUR_SECONDS]
        total[0] += 1
        total[1] += event.credits
    return {
        (user_id, tool_name, datetime.fromtimestamp(hour * HOUR_SECONDS, UTC)): total
        for (user_id, tool_name, hour), total in sorted(sums.items())
    }


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[list[object]]:
    return [[row[index] for row in rows] for index in range(width)]


def _balance(row: Record) -> Balance:
    return Balance(
        user_id=row["user_id"],
        granted=row["granted"],
        used=row["used"],
        reserved=row["reserved"],
        overdraft_limit=row["overdraft_limit"],
        version=row["version"],
        closed_at=row["closed_at"],
    )


def _grant(row: Record) -> Grant:
    return Grant(
        id=row["id"],
        user_id=row["user_id"],
        terms=Terms(
            row["source"],
            row["source_ref"],
            row["amount"],
            row["priority"],
            Category(row["category"]),
        ),
        remaining=row["remaining"],
        created_at=row["created_at"],
    )


def _event(row: Record) -> Event:
    return Event(row["id"], row["user_id"], row["tool_name"], row["credits_used"], row["timestamp"])
