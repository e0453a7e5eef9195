"""The ledger by hand: looking at it, voiding, adjusting, correcting."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from chassis import idempotency
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.postgres import Connection
from services.usage.domain.accounts import Balance, Kind, Posting
from services.usage.domain.book import Book, in_burn_order
from services.usage.domain.corrections import adjustment, deduct, is_over, reverse
from services.usage.domain.grants import BurnOrder, Grant, Terms
from services.usage.errors import (
    AccountClosed,
    AsOfTimeAhead,
    CorrectionLimit,
    GrantNotFound,
    NoCredits,
    OverdraftInUse,
    UsageNotFound,
)
from services.usage.service.accounts import AccountService
from services.usage.service.room import Room, lock_book
from services.usage.store import accounts, grants
from services.usage.store import ledger as store

KEYS = "usage_idempotency_keys"
# Most times of expiry that a list of grants names.
EXPIRIES = 10


@dataclass(frozen=True, slots=True)
class Act:
    """Who does something by hand, and why."""

    actor: str
    note: str
    key: Key | None = None


class Done(NamedTuple):
    """What something done by hand became: its entry and the account after it."""

    posting: Posting
    balance: Balance
    grant: Grant | None = None


class Expiry(NamedTuple):
    """Credits that expire at one time."""

    at: datetime
    credits: int


class LedgerService:
    """The use cases of LedgerService."""

    def __init__(self, room: Room, accounts: AccountService) -> None:
        self._room = room
        self._accounts = accounts

    async def list_grants(
        self, user_id: UUID, *, after: BurnOrder | None, limit: int
    ) -> tuple[Sequence[Grant], bool, Sequence[Expiry]]:
        """
        Returns a page of what can burn now or later, and whether there is another.

        In burn order, from just after a place in it; and what expires next, of all pages.
        """
        # Whatever begins or expires by now has begun and expired.
        await self._accounts.get_balance(user_id)
        async with self._room.database.connection() as conn:
            found = in_burn_order(await grants.open_grants(conn, [user_id]))
        now = self._room.clock.now()
        held = [grant for grant in found if not is_over(grant, now)]
        rest = [grant for grant in held if after is None or grant.burn_order > after]
        return rest[:limit], len(rest) > limit, expiries(held)[:EXPIRIES]

    async def list_entries(
        self, user_id: UUID, *, before: int | None, limit: int
    ) -> tuple[Sequence[Posting], bool]:
        """Returns a page, newest first, from before a version, and whether there is another."""
        await self._accounts.get_balance(user_id)
        async with self._room.database.connection() as conn:
            found = await store.list_entries(conn, user_id, before=before, limit=limit + 1)
        return found[:limit], len(found) > limit

    async def balance_at(self, user_id: UUID, at: datetime) -> tuple[Balance, int, int]:
        """
        Returns the account now, and its balance and version at a past instant.

        Zeros before its first entry, also before it was opened. AsOfTimeAhead after now.
        """
        if at > self._room.clock.now():
            raise AsOfTimeAhead
        balance = await self._accounts.get_balance(user_id)
        async with self._room.database.connection() as conn:
            available, version = await store.balance_at(conn, user_id, at)
        return balance, available, version

    async def void_grant(self, user_id: UUID, grant_id: UUID, act: Act) -> tuple[Grant, Balance]:
        """Voids what is left of a grant; one that was voided stays as it is."""
        now = self._room.clock.now()
        async with self._room.writing(user_id) as conn:
            book = await lock_book(conn, user_id, now)
            found = await _with_grants(conn, book, [grant_id])
            if not found:
                raise GrantNotFound
            grant = found[0]
            if grant.voided_at is None:
                book.actor, book.note = act.actor, act.note
                book.retire(grant, Kind.VOID, now)
                await accounts.write_books(conn, [book], now)
                await grants.sign_void(conn, grant.id, act.actor, act.note)
            return grant, book.balance()

    async def adjust_credits(self, user_id: UUID, amount: int, act: Act) -> Done:
        """
        Adds credits, as a grant that does not expire, or takes them in burn order.

        NoCredits if more would be taken than could be spent.
        """
        now = self._room.clock.now()
        async with self._room.writing(user_id) as conn:

            async def effect() -> Done:
                book = await _lock_open(conn, user_id, now, act)
                grant = None
                if amount > 0:
                    grant = self._new_grant(user_id, adjustment(amount, str(uuid7(now))), now)
                    await grants.insert_grant(conn, grant)
                    book.add(grant, now)
                else:
                    if -amount > book.spendable:
                        raise NoCredits(
                            metadata={"balance": str(book.available), "credits": str(-amount)}
                        )
                    deduct(book, -amount, now)
                await accounts.write_books(conn, [book], now)
                return Done(book.postings[-1], book.balance(), grant)

            return await idempotency.once(conn, KEYS, act.key, Done, effect, now=now)

    async def set_overdraft_limit(self, user_id: UUID, limit: int, act: Act) -> Balance:
        """Sets how far below zero an account may go; the same limit again changes nothing."""
        now = self._room.clock.now()
        async with self._room.writing(user_id) as conn:
            book = await _lock_open(conn, user_id, now, act)
            if book.overdraft_limit == limit:
                return book.balance()
            if book.available < -limit:
                raise OverdraftInUse(metadata={"balance": str(book.available)})
            book.note = f"{book.overdraft_limit} -> {limit}: {act.note}"
            book.overdraft_limit = limit
            book.post(Kind.LIMIT, 0, now)
            await accounts.write_books(conn, [book], now)
            await store.set_overdraft_limit(conn, user_id, limit)
            return book.balance()

    async def correct_usage(
        self,
        user_id: UUID,
        amount: int,
        act: Act,
        *,
        event_id: UUID | None = None,
        entry_id: UUID | None = None,
    ) -> Done:
        """
        Gives credits of a tool call, or of all those of an entry, back to where they were taken.

        Whether they were taken at once or held before. UsageNotFound if there is no such
        call in tool_usage; CorrectionLimit if that is more than it cost and has not got
        back yet.
        """
        now = self._room.clock.now()
        async with self._room.writing(user_id) as conn:

            async def effect() -> Done:
                book = await _lock_open(conn, user_id, now, act)
                charge = await store.find_charge(
                    conn, user_id, event_id=event_id, entry_id=entry_id
                )
                if charge is None:
                    raise UsageNotFound
                if amount > charge.correctable:
                    raise CorrectionLimit(metadata={"correctable": str(charge.correctable)})
                await _with_grants(conn, book, [draw.grant_id for draw in charge.draws])
                posting, made = reverse(
                    book, charge, amount, now, lambda terms: self._new_grant(user_id, terms, now)
                )
                if made is not None:
                    await grants.insert_grant(conn, made)
                await accounts.write_books(conn, [book], now)
                await store.write_corrections(conn, user_id, posting, charge.allot(amount))
                return Done(posting, book.balance(), made)

            return await idempotency.once(conn, KEYS, act.key, Done, effect, now=now)

    async def forget_keys(self) -> int:
        """Deletes a batch of idempotency keys older than 72 hours; returns how many."""
        async with self._room.database.connection() as conn:
            return await idempotency.forget(conn, KEYS, self._room.clock.now())

    def _new_grant(self, user_id: UUID, terms: Terms, now: datetime) -> Grant:
        return Grant(uuid7(now), user_id, terms, terms.amount, now, now)


def expiries(found: Sequence[Grant]) -> list[Expiry]:
    """Returns what expires when, the next first, of grants that count already."""
    sums: dict[datetime, int] = {}
    for grant in found:
        at = grant.terms.expires_at
        if at is not None and grant.activated_at is not None and grant.remaining:
            sums[at] = sums.get(at, 0) + grant.remaining
    return [Expiry(*each) for each in sorted(sums.items())]


async def _lock_open(conn: Connection, user_id: UUID, now: datetime, act: Act) -> Book:
    """Locks an account for somebody to act on; AccountClosed if its user was erased."""
    book = await lock_book(conn, user_id, now)
    if book.closed_at is not None:
        raise AccountClosed
    book.actor, book.note = act.actor, act.note
    return book


async def _with_grants(conn: Connection, book: Book, ids: Sequence[UUID]) -> Sequence[Grant]:
    """Returns grants of the book, those that have nothing left taken into it too."""
    known = {grant.id: grant for grant in book.grants}
    missing = list({grant_id for grant_id in ids if grant_id not in known})
    for grant in await grants.list_grants(conn, book.user_id, missing) if missing else ():
        known[grant.id] = grant
        book.grants.append(grant)
    book.grants.sort(key=lambda each: each.burn_order)
    return [known[grant_id] for grant_id in ids if grant_id in known]
