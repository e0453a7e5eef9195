"""What stories run on: the session's servers, a database per file."""

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from tests.conftest import execute, with_database


@pytest.fixture(scope="module")
def stores(server_url: str, redis_url: str) -> Iterator[dict[str, str]]:
    """DATABASE_URL of an empty database, and REDIS_URL."""
    name = f"finity_e2e_{uuid.uuid4().hex[:12]}"
    asyncio.run(execute(server_url, f"CREATE DATABASE {name}"))
    try:
        yield {"DATABASE_URL": with_database(server_url, name), "REDIS_URL": redis_url}
    finally:
        asyncio.run(execute(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
