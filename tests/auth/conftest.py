"""What the auth room's tests share."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from chassis.postgres import Connection, Database
from services.auth.domain.users import User
from services.auth.service.emails import EmailService
from tests.auth.factors import Factors, open_factors
from tests.factories import AuthRoom, an_address, connect_owner, open_auth
from tests.fakes import FakeClock
from tests.running import PASSWORD


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[Connection]:
    """A connection to the test's database that may do everything."""
    async with connect_owner(database_url) as connection:
        yield connection


@pytest.fixture
async def every_connection(auth_database: Database) -> None:
    """All connections are open: who comes at once does not wait for the first one in turn."""
    pool: Any = auth_database._pool
    held = [await pool.acquire() for _ in range(pool.get_max_size())]
    for connection in held:
        await pool.release(connection)


@pytest.fixture
async def auth(auth_database: Database, clock: FakeClock) -> AsyncIterator[AuthRoom]:
    """The auth room without a server in front."""
    async with open_auth(auth_database, clock) as room:
        yield room


@pytest.fixture
def emails(auth: AuthRoom) -> EmailService:
    return EmailService(auth.room, auth.sessions)


@pytest.fixture
async def ada(auth: AuthRoom, owner: Connection) -> User:
    """A registered user whose address is verified."""
    user = await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
    await owner.execute("UPDATE users SET email_verified_at = created_at WHERE id = $1", user.id)
    return user


@pytest.fixture
def factors(auth: AuthRoom, clock: FakeClock) -> Factors:
    """Second factors over the auth room."""
    return open_factors(auth, clock)
