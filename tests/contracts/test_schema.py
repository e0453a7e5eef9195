"""The product's document, line by line, against a migrated database."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis.clock import SystemClock
from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from services.usage.domain.metering import Event
from services.usage.service.room import lock_book
from services.usage.store import accounts, metering
from tests.factories import make_grant

# Sections 2 to 4 of the document, for the rooms that exist: table → columns.
COLUMNS: dict[str, list[str]] = {
    "users": [
        "id",
        "email",
        "password_hash",
        "role",
        "created_at",
        "last_login",
        "oauth_provider",
        "oauth_id",
    ],
    "tool_usage": ["id", "user_id", "tool_name", "credits_used", "timestamp"],
    "email_verifications": ["id", "user_id", "token", "expires_at", "verified_at"],
    "reset_requests": ["id", "user_id", "token", "requested_at", "used_at"],
    "sessions": ["id", "user_id", "access_token", "refresh_token", "created_at", "expires_at"],
    "admin_logs": ["id"],
    "chrome_auth_links": ["id"],
}
PRIMARY_KEYS = ("users", "tool_usage", "email_verifications", "reset_requests", "sessions")
USER_ID = ("tool_usage", "email_verifications", "reset_requests", "sessions")
NOT_NULL = {"users": ["email", "role"], "tool_usage": ["user_id", "tool_name", "credits_used"]}
# Section 7, and the design's section 3: table → the columns an index starts with, unique or not.
INDEXES = [
    ("users", ["email"], True),
    ("email_verifications", ["token"], True),
    ("reset_requests", ["token"], True),
    ("tool_usage", ["user_id", "timestamp"], False),
    ("sessions", ["user_id"], False),
    ("email_verifications", ["user_id"], False),
    ("reset_requests", ["user_id"], False),
]
ROWS = 3000


@pytest.mark.parametrize("table", COLUMNS)
async def test_the_document_s_columns_exist(conn: Connection, table: str) -> None:
    """Each table has every column the product's document names, under that name."""
    found = await conn.fetch(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name = $1",
        table,
    )
    assert set(COLUMNS[table]) <= {row["column_name"] for row in found}


@pytest.mark.parametrize("table", PRIMARY_KEYS)
async def test_ids_are_uuid_primary_keys(conn: Connection, table: str) -> None:
    """`id` is a uuid and the primary key."""
    rows = await conn.fetch(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS kind"
        " FROM pg_index i JOIN pg_attribute a"
        "  ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)"
        " WHERE i.indrelid = $1::text::regclass AND i.indisprimary",
        table,
    )
    assert [(row["attname"], row["kind"]) for row in rows] == [("id", "uuid")]


@pytest.mark.parametrize("table", USER_ID)
async def test_user_ids_point_at_users(conn: Connection, table: str) -> None:
    """`user_id` is a foreign key to users and cannot be absent."""
    target = await conn.fetchval(
        "SELECT confrelid::regclass::text FROM pg_constraint"
        " WHERE conrelid = $1::text::regclass AND contype = 'f' AND conkey = ARRAY[("
        "  SELECT attnum FROM pg_attribute WHERE attrelid = $1::text::regclass"
        "  AND attname = 'user_id' AND attnotnull)]",
        table,
    )
    assert target == "users"


@pytest.mark.parametrize(("table", "columns", "unique"), INDEXES)
async def test_the_document_s_indexes_exist(
    conn: Connection, table: str, columns: list[str], unique: bool
) -> None:
    """Each index the document names exists, whole and not partial, unique where it says so."""
    rows = await conn.fetch(
        "SELECT i.indisunique, i.indnkeyatts, ARRAY(SELECT a.attname FROM unnest(i.indkey)"
        "  WITH ORDINALITY AS k (attnum, position) JOIN pg_attribute a"
        "  ON a.attrelid = i.indrelid AND a.attnum = k.attnum ORDER BY k.position) AS columns"
        " FROM pg_index i WHERE i.indrelid = $1::text::regclass AND i.indpred IS NULL",
        table,
    )
    if unique:
        assert any(row["indisunique"] and row["columns"] == columns for row in rows)
    else:
        assert any(row["columns"][: len(columns)] == columns for row in rows)


@pytest.mark.parametrize("role", ["free", "pro", "admin"])
async def test_the_document_s_roles_are_stored(conn: Connection, role: str) -> None:
    """users.role takes the three roles of the document."""
    stored = await conn.fetchval(
        "INSERT INTO users (id, email, role, created_at) VALUES ($1, $2, $3, now()) RETURNING role",
        uuid4(),
        f"{role}@example.com",
        role,
    )
    assert stored == role


async def test_times_have_a_time_zone(conn: Connection) -> None:
    """Every time in the database is an instant: no timestamp without time zone."""
    rows = await conn.fetch(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND data_type = 'timestamp without time zone'"
    )
    assert rows == []


async def test_every_foreign_key_has_an_index(conn: Connection) -> None:
    """Deleting a user, or joining by one, never reads a whole table: keys lead an index."""
    rows = await conn.fetch(
        "SELECT c.conrelid::regclass::text AS name, c.conname FROM pg_constraint c"
        " WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace"
        " AND c.conparentid = 0 AND c.confrelid = 'users'::regclass AND NOT EXISTS ("
        "  SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indkey[0] = c.conkey[1])"
    )
    assert [tuple(row.values()) for row in rows] == []


class Busy:
    """A user with many recorded events."""

    def __init__(self, user_id: UUID, events: list[Event]) -> None:
        self.user_id = user_id
        self.events = events


@pytest.fixture
async def busy(usage_database: Database, auth_database: Database) -> Busy:
    """One user among others with thousands of events, and statistics that know it."""
    now = datetime.now(UTC)
    users = [uuid4() for _ in range(20)]
    async with auth_database.transaction() as conn:
        await conn.executemany(
            "INSERT INTO users (id, email, created_at) VALUES ($1, $2, $3)",
            [(user, f"{user}@example.com", now) for user in users],
        )
    events = []
    for number in range(ROWS):
        at = now - timedelta(minutes=number)
        events.append(Event(uuid7(at), users[number % len(users)], "tool", 0, at))
    async with usage_database.transaction() as conn:
        await conn.fetchval("SELECT usage_make_partitions($1, $2)", events[-1].time, now)
        await metering.write_events(conn, events, {})
        for user in users:
            await accounts.open_account(conn, user, now)
    return Busy(users[0], events)


async def plan_of(conn: Connection, statement: str, *arguments: object) -> list[tuple[str, str]]:
    """Returns node type and table of every scan in a plan, and what rows are compared by."""
    found = await conn.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
    scans: list[tuple[str, str]] = []

    def walk(node: dict[str, Any]) -> None:
        if "Relation Name" in node:
            scans.append((node["Node Type"], node["Relation Name"]))
        if "Join Filter" in node:
            scans.append(("Join Filter", node["Join Filter"]))
        for child in node.get("Plans", ()):
            walk(child)

    walk(json.loads(found)[0]["Plan"])
    return scans


class Recorder:
    """Stands where a connection does and explains what it is asked to run."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self.scans: list[tuple[str, str]] = []

    async def execute(self, statement: str, *arguments: object) -> None:
        self.scans += await plan_of(self._conn, statement, *arguments)

    async def fetch(self, statement: str, *arguments: object) -> list[Any]:
        self.scans += await plan_of(self._conn, statement, *arguments)
        return []

    async def sequential(self) -> list[str]:
        """Names what is read from end to end; a month without rows may be."""
        rows = await self._conn.fetch("SELECT relname FROM pg_class WHERE reltuples > 0")
        names = [row["relname"] for row in rows]
        filled = {name for name in names if name.startswith(("usage", "tool_usage", "credit"))}
        return [name for kind, name in self.scans if kind == "Seq Scan" and name in filled]


async def analyse(server_url: str, usage_database: Database) -> None:
    """Lets the planner know the tables; only their owner may."""
    async with usage_database.connection() as conn:
        name = await conn.fetchval("SELECT current_database()")
    owner = await asyncpg.connect(server_url.rpartition("/")[0] + f"/{name}")
    await owner.execute("ANALYZE")
    await owner.close()


async def test_the_flush_reads_no_usage(
    usage_database: Database, server_url: str, busy: Busy
) -> None:
    """No statement of a flush has a sequential scan on a table of the room."""
    await analyse(server_url, usage_database)
    now = datetime.now(UTC)
    events = [Event(uuid7(now), busy.user_id, "tool", 2, now) for _ in range(50)]
    async with usage_database.transaction() as conn:
        book = await lock_book(conn, busy.user_id, now)
        book.add(make_grant(busy.user_id, SystemClock()), now)
        posting = book.spend(100, now)
        recorder = Recorder(conn)
        await accounts.lock_books(recorder, [busy.user_id], now)
        await accounts.write_books(recorder, [book], now)
        await metering.write_events(recorder, events, {busy.user_id: posting.id})
        assert recorder.scans
        assert await recorder.sequential() == []


async def test_events_are_found_by_their_ids(
    usage_database: Database, server_url: str, busy: Busy
) -> None:
    """Deduplication and a user's list read an index, never a whole partition."""
    await analyse(server_url, usage_database)
    async with usage_database.connection() as conn:
        recorder = Recorder(conn)
        await metering.find_events(recorder, [event.id for event in busy.events[:20]])
        await metering.list_usage(
            recorder, user_id=busy.user_id, start=None, end=None, before=None, limit=51
        )
        assert recorder.scans
        assert await recorder.sequential() == []


async def test_ids_are_looked_up_one_by_one(usage_database: Database, busy: Busy) -> None:
    """Of a month that was never analysed, too: to compare its rows with every id is quadratic."""
    async with usage_database.connection() as conn:
        recorder = Recorder(conn)
        for count in (1, 20, 1000):
            await metering.find_events(recorder, [event.id for event in busy.events[:count]])
        assert recorder.scans
        assert {kind for kind, _ in recorder.scans if kind == "Join Filter"} == set()
