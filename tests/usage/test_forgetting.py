"""Reservations are forgotten once nobody can ask for them again, and not before."""

from datetime import datetime
from uuid import UUID

import asyncpg
import pytest

from chassis.ids import uuid7_time
from chassis.postgres import Connection, Database
from services.usage.domain.metering import in_window
from services.usage.domain.requests import Release, Reserve
from services.usage.service.use_cases import UseCases
from tests.factories import at_once, ledger_faults, make_account, open_usage, reason_of
from tests.fakes import FakeClock
from tests.usage.holding import a_commit, reserve
from tests.usage.test_leases import a_lease, a_settlement

ALL = 0


async def kept(owner: Connection) -> set[UUID]:
    return {row["id"] for row in await owner.fetch("SELECT id FROM credit_reservations")}


async def released(usage: UseCases, user_id: UUID, clock: FakeClock) -> Reserve:
    asked = await reserve(usage, user_id, clock)
    await usage.reservations.ask(Release(asked.id))
    return asked


def back_to(clock: FakeClock, today: datetime) -> None:
    clock.advance(seconds=(today - clock.now()).total_seconds())


async def test_what_was_given_back_is_forgotten(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Released and expired holds go when their ids cannot come again; all others stay."""
    today = clock.now()
    clock.advance(days=-39)
    async with open_usage(usage_database, clock) as usage:
        user_id = await make_account(owner, clock, credits=1000)
        gone = [await released(usage, user_id, clock), await reserve(usage, user_id, clock)]
        clock.advance(hours=1)
        # Whoever looks at the account lets the second expire.
        await usage.reservations.get(user_id, gone[1].id)
        used = await reserve(usage, user_id, clock)
        await usage.reservations.ask(a_commit(used, 3))
        late = await reserve(usage, user_id, clock)
        held = await reserve(usage, user_id, clock)
        await owner.execute(
            "UPDATE credit_reservations SET expires_at = $1 WHERE id = ANY ($2)",
            today.replace(year=today.year + 1),
            [late.id, held.id],
        )
        clock.advance(days=2)
        young = await released(usage, user_id, clock)
        back_to(clock, today)
        await usage.reservations.ask(Release(late.id))
        assert await usage.reservations.forget(ALL) == 2
        assert await usage.reservations.forget(ALL) == 0
        assert await kept(owner) == {each.id for each in (used, late, held, young)}
        assert not any(in_window(uuid7_time(each.id), clock.now()) for each in gone)
        assert await reason_of(usage.reservations.ask(Release(gone[0].id))) == (
            "RESERVATION_NOT_FOUND"
        )
        # What was resolved only just now is answered again.
        clock.advance(hours=71)
        assert await usage.reservations.forget(ALL) == 1
        assert late.id in await kept(owner)
        clock.advance(hours=2)
        assert await usage.reservations.forget(ALL) == 1
        assert await kept(owner) == {used.id, held.id}
    assert await ledger_faults(owner) == []


async def test_what_was_used_is_kept_as_long_as_its_call(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """A commit of a month that is kept can be corrected; of an older one it is forgotten."""
    today = clock.now()
    clock.advance(days=-200)
    async with open_usage(usage_database, clock) as usage:
        user_id = await make_account(owner, clock, credits=1000)
        used = await reserve(usage, user_id, clock)
        await usage.reservations.ask(a_commit(used, 3))
        back_to(clock, today)
        assert await usage.reservations.forget(ALL) == 0
        assert await usage.reservations.forget(12) == 0
        assert await usage.reservations.forget(2) == 1
    assert await kept(owner) == set()
    assert await ledger_faults(owner) == []


async def test_the_last_lease_of_a_holder_stays(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Fences go on rising: of a holder's leases all but the last are forgotten."""
    today = clock.now()
    clock.advance(days=-200)
    async with open_usage(usage_database, clock) as usage:
        user_id = await make_account(owner, clock, credits=1000)
        first, last = a_lease(user_id, clock), a_lease(user_id, clock)
        for fence, lease in enumerate((first, last), start=1):
            await usage.reservations.ask(lease)
            await usage.reservations.settle(a_settlement(lease, fence, clock, 3))
        back_to(clock, today)
        assert await usage.reservations.forget(2) == 1
        assert await kept(owner) == {last.id}
        hold, _ = await usage.reservations.ask(a_lease(user_id, clock))
        assert hold.fence == 3
        assert await usage.reservations.forget(2) == 1


async def test_several_processes_share_the_work(
    usage_database: Database, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reservation is forgotten once, a batch at a time, and nobody waits for another."""
    monkeypatch.setattr("services.usage.service.reservations.BATCH", 10)
    today = clock.now()
    clock.advance(days=-39)
    async with open_usage(usage_database, clock) as usage:
        user_id = await make_account(owner, clock, credits=1000)
        for _ in range(30):
            await released(usage, user_id, clock)
        back_to(clock, today)
        async with owner.transaction():
            # Somebody else is at the first ten of them.
            await owner.fetch("SELECT FROM credit_reservations ORDER BY id LIMIT 10 FOR UPDATE")
            counts = await at_once(4, lambda _: usage.reservations.forget(ALL))
            assert sum(counts) == 20
        assert await usage.reservations.forget(ALL) == 10


async def test_the_service_deletes_no_other_way(usage_database: Database) -> None:
    """The room's role may not delete a reservation itself."""
    async with usage_database.connection() as conn:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute("DELETE FROM credit_reservations")
