"""The use cases of credits and metering; each opens the one transaction it needs."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from chassis.clock import Clock
from chassis.groupcommit import GroupCommit
from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from chassis.refusals import Conflict
from services.usage import domain, store
from services.usage.domain import Balance, Category, Event, Grant, Result, Terms
from services.usage.errors import AccountClosed, AccountNotOpen, GrantRefReused

ROOM = "usage"
# No caller can name it: a source on the wire has no colon.
SIGNUP = "finity:signup"
# What a flush waits for an account before it goes on without it.
FLUSH_LOCK_MS = 250
# Partitions exist this far ahead; a service that could not look ahead for so long is long dead.
PARTITIONS_AHEAD = timedelta(days=92)


class UsageService:
    """Credit accounts and metered usage."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        signup_credits: int,
        flush_events: int,
        queue_events: int,
    ) -> None:
        """`flush_events` bounds one flush, `queue_events` the events that may wait for it."""
        self._database = database
        self._clock = clock
        self._signup_credits = signup_credits
        self.meter: GroupCommit[Event, Result] = GroupCommit(
            "usage", self._flush, max_flush=flush_events, max_waiting=queue_events
        )

    async def open_account(self, user_id: UUID) -> Balance:
        """Opens an account with the credits of a new one; one that is there stays as it is."""
        if self._signup_credits == 0:
            async with self._database.transaction() as conn:
                await store.open_account(conn, user_id, self._clock.now())
                return (await store.lock_accounts(conn, [user_id]))[user_id]
        terms = Terms(
            SIGNUP,
            str(user_id),
            self._signup_credits,
            domain.DEFAULT_PRIORITY,
            Category.PROMOTIONAL,
        )
        try:
            _, balance = await self.grant(user_id, terms, any_terms=True)
        except AccountClosed:
            # The user was erased before the event that opens the account came.
            balance = await self.get_balance(user_id)
        return balance

    async def grant(
        self, user_id: UUID, terms: Terms, *, any_terms: bool = False
    ) -> tuple[Grant, Balance]:
        """
        Adds credits once per (source, source_ref), opening the account if need be.

        GrantRefReused if there is such a grant with other terms, unless `any_terms`;
        AccountClosed if there is none and the user was erased.
        """
        now = self._clock.now()
        grant = Grant(uuid7(now), user_id, terms, terms.amount, now)
        async with self._database.transaction() as conn:
            await store.open_account(conn, user_id, now)
            balance = (await store.lock_accounts(conn, [user_id]))[user_id]
            if await store.insert_grant(conn, grant):
                if balance.closed_at is not None:
                    raise AccountClosed
                return grant, await store.add_granted(conn, grant, entry_id=uuid7(now))
            first = await store.find_grant(conn, user_id, terms.source, terms.source_ref)
        if first.terms != terms and not any_terms:
            raise GrantRefReused
        return first, balance

    async def erase_user(self, user_id: UUID) -> Balance:
        """
        Closes an account for good and voids its credits; a closed account stays as it is.

        One that was never opened is closed too: the event that opens it may still come.
        """
        now = self._clock.now()
        async with self._database.transaction() as conn:
            await store.open_account(conn, user_id, now)
            balance = (await store.lock_accounts(conn, [user_id]))[user_id]
            closed = await store.close_account(conn, user_id, entry_id=uuid7(now), now=now)
            return closed or balance

    async def get_balance(self, user_id: UUID) -> Balance:
        """Returns the account now; AccountNotOpen if there is none."""
        async with self._database.connection() as conn:
            balance = await store.get_balance(conn, user_id)
        if balance is None:
            raise AccountNotOpen
        return balance

    async def record(self, events: Sequence[Event]) -> Sequence[Result]:
        """Meters events whose times are in the window; answers after they are durable."""
        return await self.meter.submit(events)

    async def list_usage(
        self,
        *,
        user_id: UUID,
        start: datetime | None,
        end: datetime | None,
        before: tuple[datetime, UUID] | None,
        limit: int,
    ) -> tuple[Sequence[Event], tuple[datetime, UUID] | None]:
        """Returns a page, newest first, and the key after which the next one starts."""
        async with self._database.connection() as conn:
            events = await store.list_usage(
                conn, user_id=user_id, start=start, end=end, before=before, limit=limit + 1
            )
        page = events[:limit]
        last = (page[-1].time, page[-1].id) if len(events) > limit else None
        return page, last

    async def make_partitions(self) -> int:
        """Makes the partitions of tool_usage that the window of accepted events will need."""
        now = self._clock.now()
        async with self._database.transaction() as conn:
            return await store.make_partitions(
                conn, now - domain.OLDEST_EVENT, now + PARTITIONS_AHEAD
            )

    async def _flush(self, events: Sequence[Event]) -> Sequence[Result]:
        try:
            return await self._flush_locked(events, wait=True)
        except Conflict:
            # Somebody holds one of the accounts for too long: the others need not wait for it.
            return await self._flush_locked(events, wait=False)

    async def _flush_locked(self, events: Sequence[Event], *, wait: bool) -> Sequence[Result]:
        now = self._clock.now()
        users = {event.user_id for event in events}
        busy: dict[UUID, Balance] = {}
        try:
            async with self._database.transaction(lock_ms=FLUSH_LOCK_MS) as conn:
                if wait:
                    accounts = await store.lock_accounts(conn, users)
                else:
                    accounts, busy = await store.lock_free_accounts(conn, users)
                recorded = await store.find_events(conn, [event.id for event in events])
                settlement = domain.settle(events, accounts, recorded, busy)
                if settlement.accepted:
                    await self._write(conn, settlement, accounts, now)
        except asyncpg.UniqueViolationError as error:
            # The same event id for another user, in a flush that ran beside this one.
            raise Conflict from error
        return settlement.results

    async def _write(
        self,
        conn: Connection,
        settlement: domain.Settlement,
        accounts: dict[UUID, Balance],
        now: datetime,
    ) -> None:
        charged = sorted(user_id for user_id, spent in settlement.spent.items() if spent)
        flush = store.Flush(settlement.accepted, {user_id: uuid7(now) for user_id in charged})
        grants = await store.burnable_grants(conn, charged) if charged else {}
        for user_id in charged:
            account, spent = accounts[user_id], settlement.spent[user_id]
            entry_id = flush.entry_of[user_id]
            balance = account.available - spent
            flush.spent.append((entry_id, user_id, spent, balance, account.version + 1))
            draws = domain.burn(spent, grants.get(user_id, ()))
            flush.draws.extend((entry_id, draw) for draw in draws)
        await store.write_flush(conn, flush, now)
