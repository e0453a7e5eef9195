"""Proves that credit accounts add up, reading only."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from chassis.postgres import Connection
from services.usage.domain.proofs import Check, Fault, Proven, hour_of
from services.usage.store import proofs
from suite import report
from suite.errors import SuiteError

PAGE = 500
_START = UUID(int=0)


@dataclass(slots=True)
class Looked:
    """What a look at accounts found."""

    accounts: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def failing(self) -> dict[Check, int]:
        """How many accounts fail each check."""
        return {
            check: len({fault.user_id for fault in self.faults if fault.check is check})
            for check in Check
        }


async def verify(url: str, user_id: UUID | None, *, whole: bool) -> Looked:
    """Proves one account, every one, or those that changed since they were proven."""
    async with report.connected(url) as conn:
        if not await conn.fetchval("SELECT to_regclass('usage_verifications') IS NOT NULL"):
            raise SuiteError("This database has no proofs of ledgers yet; run `finity migrate`.")
        looked = Looked()
        if user_id is not None:
            await _prove(conn, looked, [Proven(user_id)])
            return looked
        after: UUID | None = _START
        while after is not None:
            after = await _page(conn, looked, after, whole)
        return looked


async def _page(conn: Connection, looked: Looked, after: UUID, whole: bool) -> UUID | None:
    # One moment a page: accounts are each other's business in nothing.
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        now = datetime.now(UTC)
        page = await proofs.page_of_accounts(conn, after, PAGE, hour_of(now))
        wanted = [user_id for user_id, changed in page if whole or changed]
        since = [Proven(user_id) for user_id in wanted]
        await _look(conn, looked, since if whole else await proofs.last_proven(conn, wanted, now))
    return page[-1][0] if len(page) == PAGE else None


async def _prove(conn: Connection, looked: Looked, since: list[Proven]) -> None:
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        await _look(conn, looked, since)


async def _look(conn: Connection, looked: Looked, since: list[Proven]) -> None:
    looked.accounts += len(since)
    looked.faults += await proofs.find_faults(conn, since)
