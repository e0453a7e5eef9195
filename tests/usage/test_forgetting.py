"""Reservations are forgotten once nobody can ask for them again, and not before."""

from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from chassis.ids import uuid7_time
from chassis.postgres import Connection, Database
from services.usage.domain.metering import in_window
from services.usage.domain.requests import Release, Reserve
from services.usage.service.ledger import Act
from services.usage.service.proofs import months_back
from services.usage.service.use_cases import UseCases
from tests.factories import at_once, ledger_faults, make_account, open_usage, reason_of
from tests.fakes import FakeClock
from tests.usage.holding import a_commit, parts, reserve
from tests.usage.test_leases import a_lease, a_settlement

ACT = Act("service:test", "because")


async def kept(owner: Connection) -> set[UUID]:
    return {row["id"] for row in await owner.fetch("SELECT id FROM credit_reservations")}


async def released(usage: UseCases, user_id: UUID, clock: FakeClock) -> Reserve:
    asked = await reserve(usage, user_id, clock)
    await usage.reservations.ask(Release(asked.id))
    return asked


async def test_what_was_given_back_is_forgotten(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Released and expired holds go when their ids cannot come again; all others stay."""
    # In the past, because the database knows the real time too.
    clock.advance(days=-10)
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
            today + timedelta(days=365),
            [late.id, held.id],
        )
        clock.advance(days=2)
        young = await released(usage, user_id, clock)
        clock.move_to(today)
        await usage.reservations.ask(Release(late.id))
        assert await usage.reservations.forget() == 2
        assert await usage.reservations.forget() == 0
        assert await kept(owner) == {each.id for each in (used, late, held, young)}
        assert not any(in_window(uuid7_time(each.id), clock.now()) for each in gone)
        again = usage.reservations.ask(Release(gone[0].id))
        assert await reason_of(again) == "RESERVATION_NOT_FOUND"
        clock.advance(hours=71)
        assert await usage.reservations.forget() == 1
        # What was resolved only just now is answered again.
        assert late.id in await kept(owner)
        clock.advance(hours=2)
        assert await usage.reservations.forget() == 1
        assert await kept(owner) == {used.id, held.id}
    assert await ledger_faults(owner) == []


async def test_what_was_used_is_kept_as_long_as_its_calls(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """While a month is kept its calls can be corrected; then its reservations are forgotten."""
    today = clock.now()
    clock.advance(days=-200)
    async with open_usage(usage_database, clock) as usage:
        user_id = await make_account(owner, clock, credits=1000)
        used = await reserve(usage, user_id, clock)
        await usage.reservations.ask(a_commit(used, 3))
        clock.move_to(today)
        assert await usage.reservations.forget() == 0
        await usage.ledger.correct_usage(user_id, 1, ACT, event_id=used.id)
        while await usage.proofs.detach_months(2):
            pass
        assert await usage.reservations.forget() == 1
        late = usage.ledger.correct_usage(user_id, 1, ACT, event_id=used.id)
        assert await reason_of(late) == "USAGE_NOT_FOUND"
    assert await kept(owner) == set()
    assert await ledger_faults(owner) == []


async def test_a_lease_is_kept_for_the_month_it_was_settled_in(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """A lease taken before midnight and settled after it has calls of the later month."""
    today = clock.now()
    kept_from = months_back(today, 2)
    clock.move_to(kept_from - timedelta(minutes=10))
    async with open_usage(usage_database, clock) as usage:
        user_id = await make_account(owner, clock, credits=1000)
        lease = a_lease(user_id, clock, ttl=timedelta(hours=1))
        await usage.reservations.ask(lease)
        clock.advance(minutes=20)
        settlement = a_settlement(lease, 1, clock, 3, 4)
        await usage.reservations.settle(settlement)
        clock.move_to(today)
        while await usage.proofs.detach_months(2):
            pass
        assert await usage.reservations.forget() == 0
        event_id = settlement.calls[0].id
        await usage.ledger.correct_usage(user_id, 2, ACT, event_id=event_id)
        assert await parts(usage, user_id) == (995, 1000, 5, 0)
        # A call whose reservation is gone all the same is not corrected by guesses.
        await owner.execute("DELETE FROM credit_reservations")
        late = usage.ledger.correct_usage(user_id, 1, ACT, event_id=event_id)
        assert await reason_of(late) == "USAGE_NOT_FOUND"
    assert await ledger_faults(owner) == []


async def test_fences_outlive_their_leases(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """A holder whose leases are all forgotten goes on counting; what they were is not known."""
    today = clock.now()
    clock.advance(days=-40)
    async with open_usage(usage_database, clock) as usage:
        user_id = await make_account(owner, clock, credits=1000)
        first, last = a_lease(user_id, clock), a_lease(user_id, clock)
        await usage.reservations.ask(first)
        await usage.reservations.ask(last)
        clock.advance(hours=1)
        await usage.standings.mature_due()
        clock.move_to(today)
        assert await usage.reservations.forget() == 2
        assert await kept(owner) == set()
        late = usage.reservations.settle(a_settlement(last, 2, clock, 3))
        assert await reason_of(late) == "RESERVATION_NOT_FOUND"
        hold, _ = await usage.reservations.ask(a_lease(user_id, clock))
        assert hold.fence == 3
    assert await ledger_faults(owner) == []


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
        clock.move_to(today)
        async with owner.transaction():
            # Somebody else is at ten of them.
            await owner.fetch("SELECT FROM credit_reservations ORDER BY id LIMIT 10 FOR UPDATE")
            counts = await at_once(4, lambda _: usage.reservations.forget())
            assert sum(counts) == 20
        assert await usage.reservations.forget() == 10


async def test_the_service_deletes_no_other_way(usage_database: Database) -> None:
    """The room's role deletes no reservation itself, and none that may be asked for again."""
    async with usage_database.connection() as conn:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute("DELETE FROM credit_reservations")
        for made, resolved in (("35 days", "80 hours"), ("40 days", "70 hours")):
            with pytest.raises(asyncpg.RaiseError, match="may be asked for again"):
                await conn.fetchval(
                    "SELECT usage_forget_reservations("
                    f"now() - interval '{made}', now() - interval '{resolved}', 10)"
                )


async def test_what_is_forgotten_is_found_by_indexes(owner: Connection) -> None:
    """Whatever the tables held when they were analysed, no reservation is read that stays."""
    body, settings = await owner.fetchrow(
        "SELECT prosrc, proconfig FROM pg_proc WHERE proname = 'usage_forget_reservations'"
    )
    statement = body[body.index("WITH given_back") : body.index(";\n    RETURN")]
    for name, value in (
        ("made_before", "$1::timestamptz"),
        ("resolved_before", "$2::timestamptz"),
        ("kept_from", "$3::timestamptz"),
        ("most", "$4::int"),
        (" INTO deleted", ""),
    ):
        statement = statement.replace(name, value)
    for setting in ("plan_cache_mode=force_generic_plan", *settings):
        await owner.execute(f"SET {setting.replace('=', ' = ')}")
    await owner.execute(f"PREPARE forgetting AS {statement}")
    rows = await owner.fetch("EXPLAIN EXECUTE forgetting (now(), now(), now(), 10)")
    plan = "\n".join(row[0] for row in rows)
    assert "Seq Scan" not in plan
    assert plan.count("Index Scan using credit_reservations_given_back_idx") == 1
    assert plan.count("Index Scan using credit_reservations_pkey") == 2
    assert "Sort" not in plan
    assert "Bitmap" not in plan
