"""Quotas as use cases: setting, deleting, listing, and asking whether a call would be admitted."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from chassis.ids import uuid7
from chassis.postgres import Connection
from services.usage.domain.book import Book
from services.usage.domain.calendar import Window
from services.usage.domain.metering import Event, Outcome, Result, admit
from services.usage.domain.quotas import WINDOWS, Counter, Limits, Quota, Scope, in_force
from services.usage.errors import AccountClosed, AccountNotOpen
from services.usage.service.limits import load_limits
from services.usage.service.room import Room, lock_book
from services.usage.store import accounts
from services.usage.store import quotas as store


class Status(NamedTuple):
    """A quota as it stands."""

    quota: Quota
    counter: Counter
    resets_at: datetime

    @property
    def place(self) -> tuple[str, str]:
        """Where it stands in the list; no two have the same."""
        return self.quota.tool_name, str(WINDOWS.index(self.quota.window))


class QuotaService:
    """Quotas of users and roles."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def set_quota(
        self,
        scope: Scope,
        tool_name: str,
        window: Window,
        *,
        max_calls: int | None,
        max_credits: int | None,
    ) -> Quota:
        """
        Sets a quota in the place of the one of its scope, tool and window.

        UserNotFound if there is no such user, AccountClosed if it was erased.
        """
        now = self._room.clock.now()
        quota = Quota(scope, tool_name, window, max_calls, max_credits, now)
        async with self._room.database.transaction() as conn:
            await self._lock(conn, scope, now)
            await store.upsert_quota(conn, quota)
            await self._count(conn, scope, now)
        return quota

    async def delete_quota(self, scope: Scope, tool_name: str, window: Window) -> bool:
        """Takes a quota away; False if there is none. Refuses as set_quota does."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            await self._lock(conn, scope, now)
            deleted = await store.delete_quota(conn, scope, tool_name, window)
            if deleted:
                await self._count(conn, scope, now)
        return deleted

    async def list_quotas(self, user_id: UUID) -> Sequence[Status]:
        """Returns the quotas that hold for a user, by tool and window; AccountNotOpen if none."""
        _, limits = await self._read(user_id, None)
        if limits is None:
            return []
        return [
            Status(quota, limits.counter(quota), limits.resets_at(quota))
            for quota in in_force(limits.quotas)
        ]

    async def check(self, user_id: UUID, tool_name: str, cost: int) -> Result:
        """Tells what would become of a call now; AccountNotOpen if there is no account."""
        book, limits = await self._read(user_id, tool_name)
        if book.closed_at is not None:
            return Result(Outcome.ACCOUNT_CLOSED, book.available)
        now = self._room.clock.now()
        event = Event(uuid7(now), user_id, tool_name, cost, now)
        held = {user_id: limits} if limits else {}
        outcome, why = admit(event, book, book.spendable, held)
        return Result(outcome, book.available, why)

    async def _read(self, user_id: UUID, tool_name: str | None) -> tuple[Book, Limits | None]:
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            # One picture of account, grants and counters; and no writing by mistake.
            await accounts.only_read(conn)
            book = await accounts.read_book(conn, user_id, now)
            if book is None:
                raise AccountNotOpen
            tools = None if tool_name is None else [tool_name]
            limits = await load_limits(conn, {user_id: book}, now, tools)
        return book, limits.get(user_id)

    async def _lock(self, conn: Connection, scope: Scope, now: datetime) -> None:
        """Locks what knows of the scope's quotas, so that they change one by one."""
        if scope.user_id is not None:
            await accounts.open_account(conn, scope.user_id, now)
            if (await lock_book(conn, scope.user_id, now)).closed_at is not None:
                raise AccountClosed
        elif scope.role is not None:
            await store.lock_role(conn, scope.role)

    async def _count(self, conn: Connection, scope: Scope, now: datetime) -> None:
        """Lets whoever locks an account see that there are quotas."""
        if scope.user_id is not None:
            book = await lock_book(conn, scope.user_id, now)
            book.standing.quotas = await store.count_user(conn, scope.user_id)
            book.standing.changed = True
            await accounts.write_books(conn, [book], now)
        elif scope.role is not None:
            await store.count_role(conn, scope.role)
