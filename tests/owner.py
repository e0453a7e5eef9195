"""The database as its owner sees it: looking at what rooms wrote, and what no caller may write."""

import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg

from chassis.postgres import Connection


@contextlib.asynccontextmanager
async def connect_owner(database_url: str) -> AsyncIterator[Connection]:
    """A connection that may do everything; for looking at what the rooms wrote."""
    connection = await asyncpg.connect(database_url.split("?", maxsplit=1)[0])
    try:
        yield connection
    finally:
        await connection.close()


async def verify_address(conn: Connection, user_id: UUID | str) -> None:
    """Verifies somebody's address without a mail."""
    await conn.execute("UPDATE users SET email_verified_at = created_at WHERE id = $1", user_id)


async def make_admin(conn: Connection, user_id: UUID | str) -> None:
    """Makes somebody an administrator, as no service may."""
    await conn.execute("UPDATE users SET role = 'admin' WHERE id = $1", user_id)
