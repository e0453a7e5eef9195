"""Reservations and leases: credits held while calls run, in flushes as calls are metered."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from chassis.errors import Refusal
from chassis.groupcommit import GroupCommit
from chassis.ids import uuid7_time
from chassis.postgres import Connection
from chassis.refusals import Conflict
from services.usage.domain.accounts import Balance
from services.usage.domain.book import Book
from services.usage.domain.holds import ANSWERED_AGAIN, Hold, State
from services.usage.domain.metering import OLDEST_EVENT, Event
from services.usage.domain.requests import Lease, Outcome, Request, Reserve, Result, Settle
from services.usage.domain.reservations import Desk
from services.usage.errors import (
    AccountClosed,
    AccountNotOpen,
    EventIdReused,
    LeaseFenced,
    NoCredits,
    QuotaWindow,
    RateLimit,
    ReservationCommitted,
    ReservationExceeded,
    ReservationExpired,
    ReservationIdReused,
    ReservationNotFound,
    ReservationReleased,
)
from services.usage.service.limits import load_limits, write_limits
from services.usage.service.metering import FLUSH_LOCK_MS
from services.usage.service.room import Room, lock_book
from services.usage.store import accounts, metering
from services.usage.store import reservations as store

QUEUE = "reservations"
# How many are forgotten in one transaction.
BATCH = 1000
_REFUSALS: dict[Outcome, type[Refusal]] = {
    Outcome.NO_CREDITS: NoCredits,
    Outcome.ACCOUNT_NOT_OPEN: AccountNotOpen,
    Outcome.ACCOUNT_CLOSED: AccountClosed,
    Outcome.ACCOUNT_BUSY: Conflict,
    Outcome.EVENT_ID_REUSED: EventIdReused,
    Outcome.NOT_FOUND: ReservationNotFound,
    Outcome.ID_REUSED: ReservationIdReused,
    Outcome.EXCEEDED: ReservationExceeded,
    Outcome.COMMITTED: ReservationCommitted,
    Outcome.RELEASED: ReservationReleased,
    Outcome.EXPIRED: ReservationExpired,
    Outcome.FENCED: LeaseFenced,
    Outcome.QUOTA_WINDOW: QuotaWindow,
    Outcome.RATE_LIMIT: RateLimit,
}


class ReservationService:
    """Holding credits, and using them up or giving them back, once each."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.desk: GroupCommit[Request, Result] = GroupCommit(
            QUEUE,
            self._flush,
            max_flush=room.flush_events,
            max_waiting=room.queue_events,
            size=_size,
        )

    async def ask(self, request: Request) -> tuple[Hold, int]:
        """
        Does what is asked, once: the same again is answered as it was the first time.

        Returns the hold and what is left to spend once it is durable; a refusal for
        each other outcome.
        """
        hold, available, _ = await self._ask(request)
        return hold, available

    async def settle(self, request: Settle) -> tuple[Hold, int, Hold | None]:
        """The same for a lease; returns the next one too, None without one."""
        return await self._ask(request)

    async def get(self, user_id: UUID, reservation_id: UUID) -> Hold:
        """Returns a reservation as it is now; ReservationNotFound unless it is the user's."""
        now = self._room.clock.now()
        async with self._room.database.connection() as conn:
            hold = await self._find(conn, user_id, reservation_id)
        if hold.state is not State.OPEN or hold.expires_at > now:
            return hold
        # It is over: whoever asks first writes it.
        async with self._room.writing(user_id) as conn:
            book = await lock_book(conn, user_id, now)
            await accounts.write_books(conn, [book], now)
            return await self._find(conn, user_id, reservation_id)

    async def forget(self) -> int:
        """
        Deletes a batch of reservations nobody can ask for again; returns how many.

        Those that were given back, once their ids are too old to come again; those that
        were used, once the months of their calls are detached.
        """
        now = self._room.clock.now()
        resolved_before = now - ANSWERED_AGAIN
        async with self._room.database.connection() as conn:
            return await store.forget_holds(
                conn, resolved_before - OLDEST_EVENT, resolved_before, BATCH
            )

    async def _ask(self, request: Request) -> tuple[Hold, int, Hold | None]:
        (result,) = await self.desk.submit([request])
        if result.outcome is not Outcome.DONE or result.hold is None:
            raise self._refusal(result)
        return result.hold, result.available, result.renewed

    def _refusal(self, result: Result) -> Refusal:
        kind, exceeded = _REFUSALS[result.outcome], result.exceeded
        if exceeded is None:
            return kind(metadata=_metadata(result))
        left = (exceeded.resets_at - self._room.clock.now()).total_seconds()
        return kind(metadata=exceeded.told(), retry_after=max(left, 0.0))

    async def _find(self, conn: Connection, user_id: UUID, reservation_id: UUID) -> Hold:
        holds = await store.find_holds(conn, [reservation_id])
        if not holds or holds[0].user_id != user_id or holds[0].holder:
            raise ReservationNotFound
        return holds[0]

    async def _flush(self, requests: Sequence[Request]) -> Sequence[Result]:
        try:
            return await self._flush_locked(requests, wait=True)
        except Conflict:
            # Somebody holds one of the accounts for too long: the others need not wait for it.
            return await self._flush_locked(requests, wait=False)

    async def _flush_locked(self, requests: Sequence[Request], *, wait: bool) -> Sequence[Result]:
        now = self._room.clock.now()
        try:
            async with self._room.database.transaction(lock_ms=FLUSH_LOCK_MS) as conn:
                users = await _users(conn, requests)
                books: Mapping[UUID, Book]
                busy: Mapping[UUID, Balance] = {}
                if wait:
                    books = await accounts.lock_books(conn, users, now)
                else:
                    books, busy = await accounts.lock_free_books(conn, users, now)
                desk = await _desk(conn, requests, books, busy, now)
                desk.limits = await load_limits(conn, books, now, _tools(requests))
                results = [desk.decide(request) for request in requests]
                changed = [book for book in books.values() if book.changed_holds]
                if changed:
                    await accounts.write_books(conn, changed, now)
                    await _write_calls(conn, results)
                    await write_limits(conn, desk.limits)
                if desk.moved:
                    moved = {holder: desk.fences[holder] for holder in sorted(desk.moved)}
                    await store.write_fences(conn, moved)
        except asyncpg.UniqueViolationError as error:
            # The same id for another user, in a flush that ran beside this one.
            raise Conflict from error
        self._room.announce([book.user_id for book in changed])
        return results


def _size(request: Request) -> int:
    """Returns how much there is to write: a settlement records up to a thousand calls."""
    return 1 + len(request.calls) if isinstance(request, Settle) else 1


async def _users(conn: Connection, requests: Sequence[Request]) -> set[UUID]:
    users = {request.user_id for request in requests if isinstance(request, Reserve | Lease)}
    others = [request.id for request in requests if not isinstance(request, Reserve | Lease)]
    return users | await store.find_owners(conn, others) if others else users


async def _desk(
    conn: Connection,
    requests: Sequence[Request],
    books: Mapping[UUID, Book],
    busy: Mapping[UUID, Balance],
    now: datetime,
) -> Desk:
    """Reads all that the requests are about."""
    settled = [request for request in requests if isinstance(request, Settle)]
    ids = [request.id for request in requests]
    renewals = [request.renewal.id for request in settled if request.renewal]
    holds = {hold.id: hold for hold in await store.find_holds(conn, [*ids, *renewals])}
    calls = [call.id for request in settled for call in request.calls]
    recorded = {event.id: event for event in await metering.find_events(conn, [*ids, *calls])}
    holders = {(each.user_id, each.holder) for each in requests if isinstance(each, Lease)}
    holders |= {(hold.user_id, hold.holder) for hold in holds.values() if hold.holder}
    fences = await store.find_fences(conn, holders) if holders else {}
    last = [fence.lease_id for fence in fences.values() if fence.lease_id not in holds]
    holds |= {hold.id: hold for hold in await store.find_holds(conn, last)} if last else {}
    await accounts.add_drawn(conn, books, _open(holds.values()))
    return Desk(books, busy, recorded, now, holds, fences)


def _open(holds: Iterable[Hold]) -> list[Hold]:
    return [hold for hold in holds if hold.state is State.OPEN]


def _tools(requests: Sequence[Request]) -> set[str]:
    return {request.tool_name for request in requests if isinstance(request, Reserve)}


async def _write_calls(conn: Connection, results: Sequence[Result]) -> None:
    """Records each commit as the tool call it was for, each settlement as its calls."""
    paid = [
        (call, result.entry_id)
        for result in results
        if result.entry_id is not None and result.hold is not None
        for call in (result.calls if result.hold.holder else (_call(result.hold),))
    ]
    if paid:
        await metering.write_paid_events(
            conn, [call for call, _ in paid], [entry_id for _, entry_id in paid]
        )


def _call(hold: Hold) -> Event:
    tool_name = hold.committed_tool or hold.tool_name
    return Event(hold.id, hold.user_id, tool_name, hold.committed or 0, uuid7_time(hold.id))


def _metadata(result: Result) -> dict[str, str]:
    """Returns what a program may need to know about a refusal."""
    if result.outcome is Outcome.NO_CREDITS:
        return {
            "balance": str(result.available),
            "credits": str(result.asked),
            "short": str(result.short),
        }
    if result.outcome is Outcome.EXCEEDED and result.hold is not None:
        held = result.hold.amount
        return {"held": str(held), "credits": str(held + result.asked)}
    if result.outcome is Outcome.FENCED:
        return {"fence": str(result.asked)}
    return {}
