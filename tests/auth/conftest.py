"""What the auth room's tests share."""

from collections.abc import AsyncIterator

import pytest

from chassis.postgres import Connection, Database
from tests.auth.factors import Factors, open_factors
from tests.factories import AuthRoom, connect_owner, open_auth
from tests.fakes import FakeClock


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[Connection]:
    """A connection to the test's database that may do everything."""
    async with connect_owner(database_url) as connection:
        yield connection


@pytest.fixture
async def auth(auth_database: Database, clock: FakeClock) -> AsyncIterator[AuthRoom]:
    """The auth room without a server in front."""
    async with open_auth(auth_database, clock) as room:
        yield room


@pytest.fixture
def factors(auth: AuthRoom, clock: FakeClock) -> Factors:
    """Second factors over the auth room."""
    return open_factors(auth, clock)
