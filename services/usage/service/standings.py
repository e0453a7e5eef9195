"""How accounts stand: role, time zone, allowance, and what is due without being asked."""

from collections.abc import Mapping
from uuid import UUID

from services.usage.domain.book import Book
from services.usage.domain.standing import Role
from services.usage.service.room import Room, lock_book
from services.usage.store import accounts
from services.usage.store import standings as store

DUE_AT_ONCE = 100


class StandingService:
    """Roles, time zones and allowances of accounts."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def set_allowances(self, allowances: Mapping[Role, int]) -> None:
        """Sets the monthly allowances; a month that was granted stays as it was granted."""
        async with self._room.database.transaction() as conn:
            await store.set_allowances(conn, allowances)

    async def set_time_zone(self, user_id: UUID, time_zone: str) -> str:
        """Moves an account to a time zone; AccountNotOpen if there is none."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            book = await lock_book(conn, user_id, now)
            if book.closed_at is None and book.standing.time_zone != time_zone:
                book.standing.move(time_zone)
                # The next allowance may come at another time, or now.
                book.mature(now)
                await accounts.write_books(conn, [book], now)
            return book.standing.time_zone

    async def set_role(self, user_id: UUID, role: Role, sequence: int) -> Book:
        """
        Takes over a role, with what is missing of its allowance, unless a newer one was.

        Opens the account: the change may come before the event that opens it.
        """
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            await accounts.open_account(conn, user_id, now)
            book = await lock_book(conn, user_id, now)
            if book.closed_at is None and sequence > book.standing.role_sequence:
                book.standing.change_role(role, sequence, *await store.of_role(conn, role))
                book.mature(now)
                book.grant_allowance(now)
                await accounts.write_books(conn, [book], now)
        return book

    async def mature_due(self) -> int:
        """
        Writes what began, expired or was to be granted; returns for how many accounts.

        Those that somebody holds are that one's to write, or the next call's.
        """
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            due = await store.find_due(conn, now, DUE_AT_ONCE)
            if not due:
                return 0
            books, _ = await accounts.lock_free_books(conn, due, now)
            if books:
                await accounts.write_books(conn, books.values(), now)
        # Another process may have been first with some.
        return sum(bool(book.postings) for book in books.values())
