"""What the usage room's tests share."""

from collections.abc import AsyncIterator

import pytest

from chassis.postgres import Connection, Database
from services.usage.service.use_cases import UseCases
from tests.factories import connect_owner, open_usage
from tests.fakes import FakeClock


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[Connection]:
    """A connection to the test's database that may do everything."""
    async with connect_owner(database_url) as connection:
        yield connection


@pytest.fixture
async def usage(usage_database: Database, clock: FakeClock) -> AsyncIterator[UseCases]:
    """The usage room with its flusher running and no server in front."""
    async with open_usage(usage_database, clock) as service:
        yield service
