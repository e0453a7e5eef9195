"""Telling users that a share of their month's credits is spent; part of every flush."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from uuid import UUID

from chassis import outbox
from chassis.postgres import Connection
from services.usage.domain.book import Book
from services.usage.domain.thresholds import Crossing, Spending, highest, month_of
from services.usage.service.room import ROOM
from services.usage.store import thresholds as store

USAGE_THRESHOLD = "usage_threshold"
AUTH = "auth"
# Accounts a process remembers; forgetting one costs a query.
MOST_KNOWN = 50_000


class Thresholds:
    """
    Which accounts reach a share, decided from their books; the database is asked rarely.

    Of an account that cannot have reached any nothing is known and nothing is asked;
    of one that can, what was spent before the month is asked once a month.
    """

    def __init__(self, percents: Sequence[int]) -> None:
        self._percents = percents
        self._known: dict[UUID, Spending] = {}

    async def enqueue(
        self, conn: Connection, books: Iterable[Book], now: datetime
    ) -> Sequence[Crossing]:
        """
        Writes an event for each account that has just reached a share, in the flush's transaction.

        To be called after the flush has written its calls; `remember` what it
        returns after the commit.
        """
        month = month_of(now)
        near = self.near(books, now)
        await self._look_up(conn, near, month)
        crossings = [
            Crossing(
                book.user_id,
                month,
                percent,
                book.used - self._known[book.user_id].used_before,
                max(_left(book), 0),
            )
            for book in near
            if (percent := self._reached(book, month))
        ]
        for crossing in crossings:
            if await store.insert_crossing(conn, crossing, now):
                payload = _payload(crossing)
                await outbox.enqueue(conn, ROOM, USAGE_THRESHOLD, payload, [AUTH], now=now)
        return crossings

    def near(self, books: Iterable[Book], now: datetime) -> list[Book]:
        """Returns the accounts that may just have reached a share; `enqueue` knows which did."""
        month = month_of(now)
        return [book for book in books if self._reached(book, month)]

    def remember(self, crossings: Iterable[Crossing]) -> None:
        """Takes in what was committed: nobody asks for these again."""
        for crossing in crossings:
            known = self._known.get(crossing.user_id)
            if known is not None and known.month == crossing.month:
                known.told = crossing.percent

    def _reached(self, book: Book, month: date) -> int:
        known = self._known.get(book.user_id)
        if known is None or known.month != month:
            # As if all it ever used were this month's: an upper bound.
            return highest(self._percents, 0, book.used, _left(book))
        return highest(self._percents, known.told, book.used - known.used_before, _left(book))

    def _knows(self, user_id: UUID, month: date) -> bool:
        known = self._known.get(user_id)
        return known is not None and known.month == month

    async def _look_up(self, conn: Connection, books: Sequence[Book], month: date) -> None:
        if len(self._known) + len(books) > MOST_KNOWN:
            self._known.clear()
        used = {b.user_id: b.used for b in books if not self._knows(b.user_id, month)}
        if used:
            for user_id, spent, told in await store.spent_in(conn, list(used), month):
                self._known[user_id] = Spending(month, used[user_id] - spent, told)


def _left(book: Book) -> int:
    return book.available + book.reserved


def _payload(crossing: Crossing) -> dict[str, str | int]:
    return {
        "user_id": str(crossing.user_id),
        "month": f"{crossing.month:%Y-%m}",
        "percent": crossing.percent,
        "used": crossing.used,
        "available": crossing.available,
    }
