"""
Migrations: plain SQL files of each room, applied once, in order, by whoever comes first.

`<room>/migrations/0001_create_users.sql` runs in one transaction as the room's owner role.
An advisory lock makes concurrent starts wait for each other, a checksum finds files that were
edited after they had run.
"""

import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import asyncpg

from chassis.dsn import DatabaseError, parse_dsn
from chassis.postgres import Connection, connecting
from chassis.roles import create_history, create_roles, create_schema, owner_of

# One number for the suite, so that two rooms never migrate at once.
LOCK = 0x46494E495459
LOCK_SECONDS = 2  # whoever reads a table waits behind a file that waits for it
_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


class MigrationError(DatabaseError):
    """The database cannot be migrated or used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Room:
    """A room's name and where its migrations are."""

    name: str
    directory: Path


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    room: str
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.room} {self.version:04d} {self.name}"


@dataclass(frozen=True, slots=True)
class State:
    """A migration as this checkout and the database know it."""

    room: str
    version: int
    name: str
    state: str
    """ "applied", "pending", "changed" (edited after it ran) or "missing" (no such file here)."""
    applied_at: datetime | None

    def __str__(self) -> str:
        return f"{self.room} {self.version:04d} {self.name} is {self.state}."


def load(room: Room) -> list[Migration]:
    """Reads a room's migrations in order; MigrationError for a gap or a bad name."""
    found: list[Migration] = []
    for path in sorted(room.directory.glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None or int(match[1]) != len(found) + 1:
            raise MigrationError(
                f"{path.name} of {room.name} must be {len(found) + 1:04d}_name.sql."
            )
        found.append(Migration(room.name, int(match[1]), match[2], path.read_text()))
    return found


async def apply(url: str, rooms: Sequence[Room], report: Callable[[str], None]) -> int:
    """Applies what is pending, one transaction a file; returns how many were applied."""
    async with _connect(url) as conn:
        await conn.execute("SELECT pg_advisory_lock($1)", LOCK)
        try:
            await create_schema(conn)
            await create_history(conn)
            for room in rooms:
                await create_roles(conn, room.name)
        except asyncpg.InsufficientPrivilegeError as error:
            raise MigrationError(f"The login of DATABASE_URL may not migrate: {error}.") from error
        pending = await _pending(conn, rooms)
        for migration in pending:
            await _run(conn, migration)
            report(str(migration))
    return len(pending)


async def plan(url: str, rooms: Sequence[Room]) -> list[Migration]:
    """Returns what `apply` would run."""
    async with _connect(url) as conn:
        return await _pending(conn, rooms)


async def status(url: str, rooms: Sequence[Room]) -> list[State]:
    """Returns every migration that this checkout or the database knows."""
    async with _connect(url) as conn:
        return await _states(conn, rooms)


async def verify(url: str, rooms: Sequence[Room]) -> list[str]:
    """Returns one sentence for each migration that is not applied exactly as it stands here."""
    return [str(state) for state in await status(url, rooms) if state.state != "applied"]


async def require_current(conn: Connection, room: Room) -> None:
    """Raises MigrationError unless the room's migrations are all applied; for a service's start."""
    behind = [s for s in await _states(conn, [room]) if s.state in ("pending", "changed")]
    if behind:
        raise MigrationError(f"The database is behind: {behind[0]} Run `finity migrate`.")


async def _pending(conn: Connection, rooms: Sequence[Room]) -> list[Migration]:
    states = {(s.room, s.version): s.state for s in await _states(conn, rooms)}
    changed = [key for key, state in states.items() if state == "changed"]
    if changed:
        room, version = changed[0]
        raise MigrationError(
            f"{room} {version:04d} was edited after it had been applied; undo that, add a new file."
        )
    return [
        migration
        for room in rooms
        for migration in load(room)
        if states[room.name, migration.version] == "pending"
    ]


async def _states(conn: Connection, rooms: Sequence[Room]) -> list[State]:
    applied = {}
    if await conn.fetchval("SELECT to_regclass('finity_migrations') IS NOT NULL"):
        rows = await conn.fetch(
            "SELECT room, version, name, checksum, applied_at FROM finity_migrations"
            " WHERE room = ANY($1) ORDER BY room, version",
            [room.name for room in rooms],
        )
        applied = {(row["room"], row["version"]): row for row in rows}
    states = []
    for room in rooms:
        for migration in load(room):
            row = applied.pop((room.name, migration.version), None)
            state = "pending"
            if row is not None:
                state = "applied" if row["checksum"] == migration.checksum else "changed"
            applied_at = row["applied_at"] if row is not None else None
            states.append(State(room.name, migration.version, migration.name, state, applied_at))
    return states + [
        State(row["room"], row["version"], row["name"], "missing", row["applied_at"])
        for row in applied.values()
    ]


async def _run(conn: Connection, migration: Migration) -> None:
    async with conn.transaction():
        try:
            await conn.execute(f"SET LOCAL ROLE {owner_of(migration.room)}")
            await conn.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
            await conn.execute(migration.sql)
            await conn.execute("RESET ROLE")
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            raise MigrationError(
                f"{migration} waited too long for a table that is in use, and left all as it was."
                " Run `finity migrate` again when the database is less busy."
            ) from error
        except asyncpg.PostgresError as error:
            raise MigrationError(f"{migration} failed: {error}") from error
        await conn.execute(
            "INSERT INTO finity_migrations (room, version, name, checksum) VALUES ($1, $2, $3, $4)",
            *(migration.room, migration.version, migration.name, migration.checksum),
        )


@contextlib.asynccontextmanager
async def _connect(url: str) -> AsyncIterator[Connection]:
    dsn = parse_dsn(url)
    if dsn.pgbouncer:
        raise MigrationError("Migrations need a direct connection, not one through PgBouncer.")
    with connecting(dsn):
        conn = await asyncpg.connect(
            dsn.url, timeout=dsn.connect_seconds, server_settings={"search_path": dsn.search_path}
        )
    try:
        yield conn
    finally:
        await conn.close(timeout=5)
