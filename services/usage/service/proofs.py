"""Proving that ledgers add up, and taking old months out of tool_usage."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from chassis.postgres import Connection
from services.usage.domain.proofs import Fault, Proven, hour_of
from services.usage.errors import AccountNotOpen
from services.usage.service.room import Room
from services.usage.store import accounts, metering
from services.usage.store import proofs as store
from services.usage.store.metering import LATEST

NOBODY = UUID(int=0)
# How many accounts one look through the ids passes, and how many are proven in one transaction.
PAGE, BATCH = 1000, 50


class Proof(NamedTuple):
    """What a look at some accounts found."""

    accounts: int
    """How many were proven or found wanting."""
    faults: Sequence[Fault]
    last: UUID | None
    """The account to go on after; None at the end."""


class ProofService:
    """VerifyLedger, and the same without being asked."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def verify_account(self, user_id: UUID) -> Proof:
        """Proves one account from its first entry on; AccountNotOpen if there is none."""
        async with self._room.database.transaction() as conn:
            await store.one_moment(conn)
            if not await accounts.get_balances(conn, [user_id]):
                raise AccountNotOpen
            now = self._room.clock.now()
            return Proof(1, await self._prove(conn, [Proven(user_id)], now), None)

    async def verify_page(self, after: UUID | None, limit: int, *, whole: bool) -> Proof:
        """
        Proves the accounts after an id: those that changed since they were seen, from there on.

        With `whole` every one, from its first entry on.
        """
        async with self._room.database.transaction() as conn:
            await store.one_moment(conn)
            now = self._room.clock.now()
            page = await store.page_of_accounts(conn, after or NOBODY, limit, hour_of(now))
            wanted = [user_id for user_id, changed in page if whole or changed]
            since = [Proven(user_id) for user_id in wanted]
            if not whole:
                since = await store.last_proven(conn, wanted, now)
            faults = await self._prove(conn, since, now)
        return Proof(len(wanted), faults, page[-1][0] if len(page) == limit else None)

    async def verify_changed(self, after: UUID | None) -> Proof:
        """
        The same in small steps, for the worker; nothing while another process does it.

        Calls of the running hour are counted when it is over: each once, and not by every proof.
        """
        async with self._room.database.transaction() as conn:
            await store.one_moment(conn)
            if not await store.is_alone(conn):
                return Proof(0, (), None)
            now = self._room.clock.now()
            hour = hour_of(now)
            page = await store.page_of_accounts(conn, after or NOBODY, PAGE, hour)
            changed = [user_id for user_id, changed in page if changed]
            batch = changed[:BATCH]
            since = await store.last_proven(conn, batch, now)
            faults = await self._prove(conn, since, now, hour)
        if len(changed) > len(batch):
            return Proof(len(batch), faults, batch[-1])
        return Proof(len(batch), faults, page[-1][0] if len(page) == PAGE else None)

    async def count_unsound(self) -> int:
        """Returns how many accounts did not add up when they were last looked at."""
        async with self._room.database.connection() as conn:
            return await store.count_unsound(conn)

    async def detach_months(self, kept: int) -> Sequence[str]:
        """
        Takes a month out of tool_usage that is older than the `kept` ones before this one.

        Returns the names of the tables, empty if there is nothing to do. One at a time,
        for each locks the whole table for a moment.
        """
        before = months_back(self._room.clock.now(), kept)
        async with self._room.database.transaction() as conn:
            return await metering.detach_partitions(conn, before, 1)

    async def _prove(
        self, conn: Connection, since: Sequence[Proven], now: datetime, until: datetime = LATEST
    ) -> Sequence[Fault]:
        if not since:
            return ()
        faults = await store.find_faults(conn, since, until)
        wrong = {fault.user_id for fault in faults}
        sound = [proven for proven in since if proven.user_id not in wrong]
        counted = [proven.user_id for proven in sound if proven.xmin is None]
        await store.write_proven(conn, [proven.user_id for proven in sound], counted, now)
        await store.write_faults(conn, faults, now)
        return faults


def months_back(now: datetime, months: int) -> datetime:
    """Returns the first instant of the month so many before this one, in UTC."""
    now = now.astimezone(UTC)
    year, month = divmod(now.year * 12 + now.month - 1 - months, 12)
    return datetime(year, month + 1, 1, tzinfo=UTC)
