"""Metered tool calls: every hot write of the room, in flushes."""

from collections.abc import Awaitable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

import asyncpg

from chassis.groupcommit import GroupCommit
from chassis.lanes import Lanes
from chassis.postgres import Connection
from chassis.refusals import Conflict
from services.usage.domain import metering
from services.usage.domain.accounts import Balance
from services.usage.domain.book import Book
from services.usage.domain.metering import Event, Result
from services.usage.domain.thresholds import Crossing
from services.usage.service.limits import load_limits, write_limits
from services.usage.service.remembered import Remembered
from services.usage.service.room import ROOM, Room
from services.usage.service.thresholds import Thresholds
from services.usage.store import accounts, optimistic
from services.usage.store import metering as store
from services.usage.store.optimistic import Seen

# While one flush is with the database another is prepared.
LANES = 2
# After one that could not do without: what kept it from that is seldom over with the next.
LOCKED_FLUSHES = 4
# What a flush waits for an account before it goes on without it.
FLUSH_LOCK_MS = 250
# Partitions exist this far ahead; a service that could not look ahead for so long is long dead.
PARTITIONS_AHEAD = timedelta(days=92)


_NOTHING: Mapping[UUID, Seen] = MappingProxyType({})


class _Done(NamedTuple):
    """What a flush without locks did."""

    results: Sequence[Result]
    seen: Collection[Seen]
    charged: Sequence[UUID]


class MeteringService:
    """Recording and listing tool calls."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._thresholds = Thresholds(room.thresholds)
        self._locked_flushes = 0
        self._remembered = Remembered()
        self.meter = Lanes(
            [
                GroupCommit(
                    f"{ROOM}-{lane}",
                    self._flush,
                    max_flush=room.flush_events,
                    max_waiting=room.queue_events // LANES,
                )
                for lane in range(LANES)
            ],
            key=attrgetter("user_id"),
        )

    def record(self, events: Sequence[Event]) -> Awaitable[Sequence[Result]]:
        """Meters events whose times are in the window; Overloaded, else results once durable."""
        return self.meter.submit(events)

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
        async with self._room.database.connection() as conn:
            events = await store.list_usage(
                conn, user_id=user_id, start=start, end=end, before=before, limit=limit + 1
            )
        page = events[:limit]
        last = (page[-1].time, page[-1].id) if len(events) > limit else None
        return page, last

    async def make_partitions(self) -> int:
        """Makes the partitions of tool_usage that the window of accepted events will need."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            return await store.make_partitions(
                conn, now - metering.OLDEST_EVENT, now + PARTITIONS_AHEAD
            )

    async def _flush(self, events: Sequence[Event]) -> Sequence[Result]:
        now = self._room.clock.now()
        known = self._remembered.take(_users_of(events), now)
        if self._locked_flushes:
            self._locked_flushes -= 1
        else:
            results = await self._flush_optimistically(events, known, now)
            if results is not None:
                return results
            self._locked_flushes = LOCKED_FLUSHES
        try:
            return await self._flush_locked(events, wait=True)
        except Conflict:
            # Somebody holds one of the accounts for too long: the others need not wait for it.
            return await self._flush_locked(events, wait=False)

    async def _flush_optimistically(
        self, events: Sequence[Event], known: Mapping[UUID, Seen], now: datetime
    ) -> Sequence[Result] | None:
        """Flushes without locks; None, and nothing is written, where they are needed."""
        try:
            async with self._room.database.connection() as conn:
                done = await self._attempt(conn, events, known, now) if known else None
                if done is None:
                    done = await self._attempt(conn, events, {}, now, doubted=known)
        except (Conflict, asyncpg.UniqueViolationError):
            # One of the events was recorded before, or is just being recorded.
            return None
        if done is None:
            return None
        self._remembered.keep(done.seen)
        self._room.announce(done.charged)
        return done.results

    async def _attempt(
        self,
        conn: Connection,
        events: Sequence[Event],
        known: Mapping[UUID, Seen],
        now: datetime,
        doubted: Mapping[UUID, Seen] = _NOTHING,
    ) -> _Done | None:
        """Flushes by accounts as they are known and, where they are not, read; None if in vain."""
        seen = dict(known)
        if unknown := _users_of(events) - seen.keys():
            read = await optimistic.read_books(conn, unknown, now)
            self._remembered.compare(doubted, read)
            seen |= read
        books = {user_id: each.book for user_id, each in seen.items()}
        if any(book.overdue(now) or book.standing.limited for book in books.values()):
            return None
        settlement = metering.settle(events, books, ())
        accepted = settlement.accepted
        # Nobody is refused by what is only remembered; and what was recorded before is a duplicate,
        # whatever the account can pay now.
        if len(accepted) < len(events) and (
            known or await store.find_events(conn, [event.id for event in events])
        ):
            return None
        entry_of = _charge(settlement, books, now)
        if self._thresholds.near([books[user_id] for user_id in entry_of], now):
            return None
        spenders = [seen[user_id] for user_id in settlement.spent]
        if accepted and not await optimistic.write_use(
            conn, spenders, accepted, entry_of=entry_of, now=now
        ):
            if known:
                self._remembered.mistaken()
            return None
        return _Done(settlement.results, seen.values(), list(entry_of))

    async def _flush_locked(self, events: Sequence[Event], *, wait: bool) -> Sequence[Result]:
        now = self._room.clock.now()
        users = _users_of(events)
        busy: dict[UUID, Balance] = {}
        crossings: Sequence[Crossing] = ()
        try:
            async with self._room.database.transaction(lock_ms=FLUSH_LOCK_MS) as conn:
                if wait:
                    books = await accounts.lock_books(conn, users, now)
                else:
                    books, busy = await accounts.lock_free_books(conn, users, now)
                recorded = await store.find_events(conn, [event.id for event in events])
                limits = await load_limits(conn, books, now, {event.tool_name for event in events})
                settlement = metering.settle(events, books, recorded, busy, limits)
                if settlement.accepted:
                    crossings = await self._write(conn, settlement, books, now)
                    await write_limits(conn, limits)
        except asyncpg.UniqueViolationError as error:
            # The same event id for another user, in a flush that ran beside this one.
            raise Conflict from error
        self._thresholds.remember(crossings)
        self._room.announce([user_id for user_id, spent in settlement.spent.items() if spent])
        return settlement.results

    async def _write(
        self,
        conn: Connection,
        settlement: metering.Settlement,
        books: dict[UUID, Book],
        now: datetime,
    ) -> Sequence[Crossing]:
        entry_of = _charge(settlement, books, now)
        charged = [books[user_id] for user_id in entry_of]
        if charged:
            await accounts.write_books(conn, charged, now)
        await store.write_events(conn, settlement.accepted, entry_of)
        return await self._thresholds.enqueue(conn, charged, now)


def _users_of(events: Sequence[Event]) -> set[UUID]:
    return {event.user_id for event in events}


def _charge(
    settlement: metering.Settlement, books: dict[UUID, Book], now: datetime
) -> dict[UUID, UUID]:
    """Spends what was accepted; returns, by user, the entry that pays for it."""
    return {
        user_id: books[user_id].spend(spent, now).id
        for user_id, spent in settlement.spent.items()
        if spent
    }
