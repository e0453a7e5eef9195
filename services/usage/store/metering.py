"""Recorded tool calls: tool_usage, its partitions, and the hourly sums."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from asyncpg import Record

from chassis.columns import column, columns, microseconds, texts
from chassis.ids import uuid7_floor
from chassis.postgres import Connection
from services.usage.domain.metering import Event

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, tzinfo=UTC)


async def find_events(conn: Connection, ids: Sequence[UUID]) -> list[Event]:
    """Returns the recorded events among these ids."""
    rows = await conn.fetch(
        # By an equal sign there would be no order, and the index of a user's events has the id too.
        # The outer bounds leave the other months' partitions out.
        "SELECT t.* FROM unnest($1::text::uuid[]) AS e (id) CROSS JOIN LATERAL ("
        '  SELECT id, user_id, tool_name, credits_used, "timestamp" FROM tool_usage'
        "  WHERE id BETWEEN e.id AND e.id AND id BETWEEN $2 AND $3 ORDER BY id LIMIT 1) AS t",
        column(ids),
        min(ids),
        max(ids),
    )
    return [_event(row) for row in rows]


async def write_events(
    conn: Connection, events: Sequence[Event], entry_of: Mapping[UUID, UUID]
) -> None:
    """
    Writes events and their hourly sums in one statement.

    `entry_of` is, by user, the ledger entry that pays for its events; absent when
    they cost nothing.
    """
    await write_paid_events(conn, events, [entry_of.get(event.user_id) for event in events])


async def write_paid_events(
    conn: Connection, events: Sequence[Event], entry_ids: Sequence[UUID | None]
) -> None:
    """Writes events, each with the entry that pays for it, and their hourly sums."""
    await conn.execute(_WRITE_EVENTS, *event_columns(events, entry_ids))


def event_columns(events: Sequence[Event], entry_ids: Iterable[UUID | None]) -> list[str]:
    """
    Returns the parameters of `record_events`.

    In the order of their ids, for two flushes that are sent the same ones must not deadlock.
    """
    paid = sorted(zip(events, entry_ids, strict=True), key=_id_of)
    ordered = [event for event, _ in paid]
    return [
        *columns(ordered, "id", "user_id", "credits"),
        texts(event.tool_name for event in ordered),
        microseconds(event.time for event in ordered),
        column(entry_id for _, entry_id in paid),
    ]


def record_events(condition: str = "") -> str:
    """
    Returns the part of a statement that writes events and their hourly sums, from $1 to $6.

    `condition` is a relation and a comma: where it has no row nothing is written, else it has one.
    An array is read from its first element to its last, and so events are written.
    """
    return f"""called AS (
    SELECT id, user_id, credits, tool_name, to_timestamp(at / 1e6::float8) AS time, entry_id
    FROM {condition} unnest(
        $1::text::uuid[], $2::text::uuid[], $3::text::bigint[], $4::text::text[],
        $5::text::bigint[], $6::text::uuid[]
    ) AS s (id, user_id, credits, tool_name, at, entry_id)
), recorded AS (
    INSERT INTO tool_usage (id, user_id, credits_used, tool_name, "timestamp", entry_id)
    SELECT id, user_id, credits, tool_name, time, entry_id FROM called
), rolled AS (
    INSERT INTO usage_rollups AS r (user_id, hour, tool_name, calls, credits)
    SELECT user_id, date_bin('1 hour', time, 'epoch') AS hour, tool_name, count(*), sum(credits)
    FROM called GROUP BY user_id, hour, tool_name
    ON CONFLICT (user_id, hour, tool_name)
    DO UPDATE SET calls = r.calls + excluded.calls, credits = r.credits + excluded.credits
)"""


_WRITE_EVENTS = f"WITH {record_events()} SELECT"


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


async def detach_partitions(conn: Connection, before: datetime, most: int) -> list[str]:
    """Takes months that ended by an instant out of tool_usage; returns the tables' names."""
    return list(await conn.fetchval("SELECT usage_detach_partitions($1, $2)", before, most))


def _id_of(paid: tuple[Event, UUID | None]) -> UUID:
    return paid[0].id


def _event(row: Record) -> Event:
    return Event(*row)
