"""
What every test may ask for: real PostgreSQL, real Valkey or Redis, a database of its own.

TEST_DATABASE_URL and TEST_REDIS_URL name servers to use; without them an
embedded PostgreSQL and Valkey are started on free ports for the session.
"""

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from chassis import migrate
from chassis.postgres import Connection, Database, open_database
from services.usage.store import PLANNER
from suite.postgres import EmbeddedPostgres
from suite.valkey import EmbeddedValkey
from tests.fakes import FakeClock
from tests.running import House, open_house

ROOT = Path(__file__).resolve().parent.parent
# Whoever waits for a core is slow: how long an example takes says nothing about our code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
# What the databases of two test processes take, twice over.
MEMORY_BYTES = 4 * 1024**3
# Parameters of the server for a race that everybody must win, however late the machine is; a
# transaction is cut a second later.
PATIENT = {"lock_timeout": "14s", "statement_timeout": "14s"}
ROOMS = [
    migrate.Room(path.parent.name, path) for path in sorted(ROOT.glob("services/*/migrations"))
]


def in_memory() -> str | None:
    """Returns a folder in memory, None if there is none with room: cloning is all about files."""
    memory = Path("/dev/shm")
    room = memory.is_dir() and os.access(memory, os.W_OK | os.X_OK)
    return str(memory) if room and shutil.disk_usage(memory).free > MEMORY_BYTES else None


def strategy() -> str:
    """Returns how to clone: by file in memory, by log on a server whose disk has to keep up."""
    given = os.environ.get("TEST_DATABASE_URL") or in_memory() is None
    return "" if given else " STRATEGY FILE_COPY"


@pytest.fixture(scope="session")
def state_dir() -> Iterator[Path]:
    """A folder that PostgreSQL's own user can reach, in memory where there is room for it."""
    with tempfile.TemporaryDirectory(
        prefix="finity-test-", dir=in_memory(), ignore_cleanup_errors=True
    ) as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture(scope="session")
def server_url(state_dir: Path) -> Iterator[str]:
    """A DATABASE_URL on a server whose databases tests may create and drop."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        # Tests put parameters behind it.
        yield given if "?" in given else f"{given}?schema=public"
        return
    postgres = EmbeddedPostgres(state_dir, durable=False)
    postgres.start()
    try:
        yield postgres.dsn
    finally:
        postgres.remove()


@pytest.fixture(scope="session")
def redis_url(state_dir: Path) -> Iterator[str]:
    """A REDIS_URL, of a database whose keys no other process of tests has; messages reach all."""
    given = os.environ.get("TEST_REDIS_URL")
    if given:
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        database = urlsplit(given).path.strip("/") or "0"
        yield with_database(given, f"{int(database) + worker}") if worker else given
        return
    valkey = EmbeddedValkey(state_dir)
    valkey.start()
    try:
        yield valkey.url
    finally:
        valkey.stop()


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a migrated database that others are cloned from."""
    name = f"finity_template_{uuid.uuid4().hex[:12]}"
    asyncio.run(execute(server_url, f"CREATE DATABASE {name}"))
    try:
        asyncio.run(migrate.apply(with_database(server_url, name), ROOMS, lambda _: None))
        yield name
    finally:
        asyncio.run(execute(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


@pytest.fixture
async def database_url(server_url: str, template: str) -> AsyncIterator[str]:
    """A migrated database of the test's own."""
    name = f"finity_test_{uuid.uuid4().hex[:12]}"
    await execute(server_url, f"CREATE DATABASE {name} TEMPLATE {template}{strategy()}")
    try:
        yield with_database(server_url, name)
    finally:
        await execute(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
async def empty_database_url(server_url: str) -> AsyncIterator[str]:
    """A database of the test's own with nothing in it."""
    name = f"finity_empty_{uuid.uuid4().hex[:12]}"
    await execute(server_url, f"CREATE DATABASE {name}")
    try:
        yield with_database(server_url, name)
    finally:
        await execute(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
async def auth_database(database_url: str) -> AsyncIterator[Database]:
    """The test's database as the auth room may use it."""
    async with open_database(
        database_url, role="finity_auth", application="test", settings=PATIENT
    ) as database:
        yield database


@pytest.fixture
async def usage_database(database_url: str) -> AsyncIterator[Database]:
    """The test's database as the usage room may use it."""
    async with open_database(
        database_url, role="finity_usage", application="test", settings=PLANNER | PATIENT
    ) as database:
        yield database


@pytest.fixture
async def conn(server_url: str, template: str) -> AsyncIterator[Connection]:
    """A connection as owner of the template database; whatever the test does is rolled back."""
    connection = await asyncpg.connect(
        with_database(server_url, template).split("?", maxsplit=1)[0]
    )
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield connection
    finally:
        await transaction.rollback()
        await connection.close()


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until the test moves it."""
    return FakeClock()


@pytest.fixture(params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    """Each transport in turn."""
    return str(request.param)


@pytest.fixture
async def house(
    database_url: str, redis_url: str, transport: str, clock: FakeClock
) -> AsyncIterator[House]:
    """Auth and usage, served in this process over real channels, once on each transport."""
    async with open_house(database_url, redis_url, transport, clock) as running:
        yield running


def with_database(url: str, name: str) -> str:
    """Returns the URL with another database in it."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def execute(url: str, statement: str) -> None:
    """Runs one statement on a connection of its own."""
    connection = await asyncpg.connect(url.split("?", maxsplit=1)[0])
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
