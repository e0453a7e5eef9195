"""Credit accounts: opening, granting, reading, closing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from chassis.groupread import GroupRead
from chassis.ids import uuid7
from services.usage.domain.accounts import Balance
from services.usage.domain.grants import DEFAULT_PRIORITY, Category, Grant, Terms, lapsed
from services.usage.errors import AccountClosed, AccountNotOpen, GrantExpiryPassed, GrantRefReused
from services.usage.service.room import Room, lock_book
from services.usage.store import accounts, grants

# No caller can name it: a source on the wire has no colon.
SIGNUP = "finity:signup"


class AccountService:
    """Credit accounts and what is granted to them."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._balances = GroupRead(self._read_balances)

    async def open_account(self, user_id: UUID) -> Balance:
        """Opens an account with the credits of a new one; one that is there stays as it is."""
        room = self._room
        if room.signup_credits == 0:
            now = room.clock.now()
            async with room.writing(user_id) as conn:
                await accounts.open_account(conn, user_id, now)
                book = await lock_book(conn, user_id, now)
                if book.postings:
                    await accounts.write_books(conn, [book], now)
                return book.balance()
        terms = Terms(
            SIGNUP, str(user_id), room.signup_credits, DEFAULT_PRIORITY, Category.PROMOTIONAL
        )
        try:
            _, balance = await self.grant(user_id, terms, any_terms=True)
        except AccountClosed:
            # The user was erased before the event that opens the account came.
            balance = await self.get_balance(user_id)
        return balance

    async def grant(
        self,
        user_id: UUID,
        terms: Terms,
        *,
        any_terms: bool = False,
        actor: str | None = None,
    ) -> tuple[Grant, Balance]:
        """
        Adds credits once per (source, source_ref), opening the account if need be.

        GrantRefReused if there is such a grant with other terms, unless `any_terms`. If
        there is none: AccountClosed if the user was erased, GrantExpiryPassed if it would
        be over before it began.
        """
        now = self._room.clock.now()
        effective = terms.effective_at or now
        grant = Grant(uuid7(now), user_id, terms, terms.amount, now, effective, granted_by=actor)
        async with self._room.writing(user_id) as conn:
            await accounts.open_account(conn, user_id, now)
            book = await lock_book(conn, user_id, now)
            # Sent again after it expired, it is the first grant still.
            inserted = not lapsed(grant, now) and await grants.insert_grant(conn, grant)
            if inserted:
                if book.closed_at is not None:
                    raise AccountClosed
                book.add(grant, now)
                await accounts.write_books(conn, [book], now)
            else:
                first = await grants.find_grant(conn, user_id, terms.source, terms.source_ref)
        if inserted:
            return grant, book.balance()
        if first is None:
            raise GrantExpiryPassed
        asked = replace(terms, effective_at=terms.effective_at or first.created_at)
        if not any_terms and first.terms != asked:
            raise GrantRefReused
        return first, book.balance()

    async def erase_user(self, user_id: UUID) -> Balance:
        """
        Closes an account for good and voids its credits; a closed account stays as it is.

        One that was never opened is closed too: the event that opens it may still come.
        """
        now = self._room.clock.now()
        async with self._room.writing(user_id) as conn:
            await accounts.open_account(conn, user_id, now)
            book = await lock_book(conn, user_id, now)
            if book.closed_at is None:
                book.close(now)
                await accounts.write_books(conn, [book], now)
        return book.balance()

    async def get_balance(self, user_id: UUID) -> Balance:
        """Returns the account now; AccountNotOpen if there is none."""
        now = self._room.clock.now()
        balance = await self._balances.get(user_id)
        if balance is None:
            raise AccountNotOpen
        if balance.due_at is None or balance.due_at > now:
            return balance
        # Something begins or expires: whoever asks first writes it.
        async with self._room.writing(user_id) as conn:
            book = await lock_book(conn, user_id, now)
            await accounts.write_books(conn, [book], now)
        return book.balance()

    async def _read_balances(self, user_ids: Sequence[UUID]) -> Mapping[UUID, Balance]:
        async with self._room.database.connection() as conn:
            return await accounts.get_balances(conn, user_ids)
