"""What the use cases of the room stand on."""

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from chassis.clock import Clock
from chassis.postgres import Connection, Database
from services.usage.domain.book import Book
from services.usage.errors import AccountNotOpen
from services.usage.store import accounts

ROOM = "usage"


def nobody(_: Collection[UUID]) -> None:
    """Stands where nobody wants to know which accounts changed."""


@dataclass(frozen=True, slots=True)
class Room:
    """Put together once, by __main__; every service takes it."""

    database: Database
    clock: Clock
    signup_credits: int
    """What a new account starts with."""
    flush_events: int
    """Most events one flush writes."""
    queue_events: int
    """Most events that may wait for a flush."""
    announce: Callable[[Collection[UUID]], None] = nobody
    """Says which accounts a transaction changed; to be called after the commit."""
    thresholds: Sequence[int] = ()
    """Shares of a month's credits, percent, that users are told of when they are spent."""

    @contextlib.asynccontextmanager
    async def writing(self, user_id: UUID) -> AsyncIterator[Connection]:
        """A transaction that changes an account, and says so after the commit."""
        async with self.database.transaction() as conn:
            yield conn
        self.announce([user_id])


async def lock_book(conn: Connection, user_id: UUID, now: datetime) -> Book:
    """Locks one account; AccountNotOpen if there is none."""
    book = (await accounts.lock_books(conn, [user_id], now)).get(user_id)
    if book is None:
        raise AccountNotOpen
    return book
