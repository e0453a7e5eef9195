"""Corrections of calls that were held before they were paid: commits and settled leases."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from services.usage.domain.requests import Extend, Lease, Overage, Settle
from services.usage.service.ledger import Act
from services.usage.service.use_cases import UseCases
from services.usage.store import ledger as store
from tests.factories import (
    at_once,
    ledger_faults,
    make_account,
    make_event,
    make_terms,
    open_usage,
    reason_of,
)
from tests.fakes import FakeClock
from tests.usage.holding import TTL, a_commit, parts, reserve

ACT = Act("service:test", "because")
DAY = timedelta(days=1)


async def with_grants(usage: UseCases, owner: Connection, clock: FakeClock, *amounts: int) -> UUID:
    """Makes an account with grants that are named after the day on which each expires."""
    user_id, now = await make_account(owner, clock), clock.now()
    for day, amount in enumerate(amounts, 1):
        terms = make_terms(source_ref=str(day), amount=amount, expires_at=now + day * DAY)
        await usage.accounts.grant(user_id, terms)
    return user_id


async def committed(usage: UseCases, user_id: UUID, clock: FakeClock, held: int, used: int) -> UUID:
    """Returns the id of a call for which so much was held and so much used."""
    asked = await reserve(usage, user_id, clock, credits=held)
    await usage.reservations.ask(a_commit(asked, used, overage=Overage.OVERDRAFT))
    return asked.id


async def left(owner: Connection, user_id: UUID) -> list[int]:
    """Returns what the grants have left, in the order of their names."""
    rows = await owner.fetch(
        "SELECT remaining FROM credit_grants WHERE user_id = $1 ORDER BY source_ref", user_id
    )
    return [row["remaining"] for row in rows]


async def newest(owner: Connection, count: int) -> list[tuple[str, int]]:
    """Returns kinds and amounts of the last entries."""
    rows = await owner.fetch("SELECT kind, amount FROM credit_entries ORDER BY version DESC")
    return [(row["kind"], row["amount"]) for row in rows[:count]]


async def correct(usage: UseCases, user_id: UUID, amount: int, **target: UUID) -> Any:
    """Corrects a call; the ledger is proven with it, from its first entry on."""
    done = await usage.ledger.correct_usage(user_id, amount, ACT, **target)
    assert (await usage.proofs.verify_account(user_id)).faults == []
    return done


async def over_correct(usage: UseCases, user_id: UUID, amount: int, **target: UUID) -> str:
    return await reason_of(usage.ledger.correct_usage(user_id, amount, ACT, **target))


@pytest.mark.parametrize("spent", [(13, 17, 3), (15, 15, 4), (18, 12, 4)])
async def test_a_committed_call_comes_back_to_what_was_held(
    usage: UseCases, owner: Connection, clock: FakeClock, spent: tuple[int, int, int]
) -> None:
    """Less than held, all of it, more: the last drawn first, in parts, up to what it cost."""
    used, remaining, part = spent
    user_id = await with_grants(usage, owner, clock, 10, 20)
    event_id = await committed(usage, user_id, clock, 15, used)
    assert await left(owner, user_id) == [0, remaining]
    assert await over_correct(usage, user_id, used + 1, event_id=event_id) == "CORRECTION_LIMIT"
    done = await correct(usage, user_id, part, event_id=event_id)
    assert await left(owner, user_id) == [0, remaining + part]
    assert (done.balance.used, done.balance.available) == (used - part, 30 - used + part)
    rest = used - part
    assert await over_correct(usage, user_id, rest + 1, event_id=event_id) == "CORRECTION_LIMIT"
    assert (await correct(usage, user_id, rest, event_id=event_id)).grant is None
    assert await left(owner, user_id) == [10, 20]
    assert await over_correct(usage, user_id, 1, event_id=event_id) == "CORRECTION_LIMIT"
    assert await parts(usage, user_id) == (30, 30, 0, 0)
    assert await owner.fetchval("SELECT credits FROM usage_rollups") == 0
    assert await owner.fetchval("SELECT credits_used FROM tool_usage") == used
    assert await ledger_faults(owner) == []


async def test_a_commit_on_overdraft_lowers_the_debt_first(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """What it took beyond all grants was taken last: that comes back first."""
    user_id = await with_grants(usage, owner, clock, 10, 5)
    await usage.ledger.set_overdraft_limit(user_id, 9, ACT)
    event_id = await committed(usage, user_id, clock, 12, 20)
    assert await parts(usage, user_id) == (-5, 15, 20, 0)
    await correct(usage, user_id, 4, event_id=event_id)
    assert await owner.fetchval("SELECT debt FROM credit_accounts") == 1
    assert await left(owner, user_id) == [0, 0]
    await correct(usage, user_id, 3, event_id=event_id)
    assert await left(owner, user_id) == [0, 2]
    await correct(usage, user_id, 13, event_id=event_id)
    assert await left(owner, user_id) == [10, 5]
    assert await ledger_faults(owner) == []


async def test_overdraft_of_a_commit_that_was_paid_comes_back_as_a_grant(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """A later grant has paid a part of it: that part is a grant which does not expire."""
    user_id = await with_grants(usage, owner, clock, 10)
    await usage.ledger.set_overdraft_limit(user_id, 8, ACT)
    event_id = await committed(usage, user_id, clock, 10, 18)
    await usage.accounts.grant(user_id, make_terms(source_ref="pays", amount=6))
    done = await correct(usage, user_id, 18, event_id=event_id)
    assert (done.grant.terms.source, done.grant.remaining) == ("finity:correction", 6)
    assert await parts(usage, user_id) == (16, 16, 0, 0)
    assert await ledger_faults(owner) == []


async def test_what_went_back_and_paid_debt_is_not_taken_for_used(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """The commit's entry gives less back than the hold did; the call still cost what it used."""
    user_id = await with_grants(usage, owner, clock, 10)
    await usage.ledger.set_overdraft_limit(user_id, 8, ACT)
    asked = await reserve(usage, user_id, clock)
    await usage.metering.record([make_event(user_id, clock.now(), credits=3)])
    await usage.reservations.ask(a_commit(asked, 6))
    assert await left(owner, user_id) == [1]
    assert await over_correct(usage, user_id, 7, event_id=asked.id) == "CORRECTION_LIMIT"
    await correct(usage, user_id, 6, event_id=asked.id)
    assert await left(owner, user_id) == [7]
    assert await parts(usage, user_id) == (7, 10, 3, 0)
    assert await ledger_faults(owner) == []


async def test_what_comes_back_to_a_held_grant_that_is_over_goes_at_once(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Expired or voided since, or between the hold and the commit: used goes down all the same."""
    user_id = await with_grants(usage, owner, clock, 10)
    voided, _ = await usage.accounts.grant(user_id, make_terms(source_ref="void", amount=10))
    asked = await reserve(usage, user_id, clock, credits=20, ttl=2 * DAY)
    clock.advance(days=1)
    await usage.reservations.ask(a_commit(asked, 17))
    await usage.ledger.void_grant(user_id, voided.id, ACT)
    assert await newest(owner, 2) == [("void", -3), ("commit", 3)]
    await correct(usage, user_id, 2, event_id=asked.id)
    assert await newest(owner, 2) == [("void", -2), ("reverse", 2)]
    done = await correct(usage, user_id, 15, event_id=asked.id)
    assert (done.balance.used, done.balance.available) == (0, 0)
    assert await newest(owner, 3) == [("expire", -10), ("void", -5), ("reverse", 15)]
    assert await ledger_faults(owner) == []


async def test_a_commit_is_corrected_by_its_entry(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """By the entry as by the call; those that only held or gave back are of no call."""
    user_id = await with_grants(usage, owner, clock, 30)
    event_id = await committed(usage, user_id, clock, 10, 4)
    nothing = await committed(usage, user_id, clock, 10, 0)
    ids = await owner.fetch(
        "SELECT kind, id FROM credit_entries WHERE kind <> 'grant' ORDER BY version"
    )
    held, entry_id, *_ = [row["id"] for row in ids]
    assert await over_correct(usage, user_id, 1, entry_id=held) == "USAGE_NOT_FOUND"
    assert await over_correct(usage, user_id, 1, event_id=nothing) == "CORRECTION_LIMIT"
    done = await correct(usage, user_id, 1, entry_id=entry_id)
    assert done.posting.reverses_id == entry_id
    assert await over_correct(usage, user_id, 4, event_id=event_id) == "CORRECTION_LIMIT"
    await correct(usage, user_id, 3, event_id=event_id)
    assert await over_correct(usage, user_id, 1, entry_id=entry_id) == "CORRECTION_LIMIT"
    assert await ledger_faults(owner) == []


async def test_a_call_that_ran_for_months_is_corrected(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Its time is that of its id, however long it was extended before it was committed."""
    user_id = await make_account(owner, clock, credits=10)
    asked = await reserve(usage, user_id, clock)
    for _ in range(40):
        await usage.reservations.ask(Extend(asked.id, 2 * DAY))
        clock.advance(days=1)
    await usage.reservations.ask(a_commit(asked, 7))
    assert (await correct(usage, user_id, 7, event_id=asked.id)).balance.used == 0
    assert await ledger_faults(owner) == []


async def test_a_settled_lease_is_corrected_call_by_call_or_whole(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Like a flush: a call gets back what it cost alone, the entry what all its calls have left."""
    user_id = await with_grants(usage, owner, clock, 10, 20)
    lease = Lease(uuid7(clock.now()), user_id, 25, TTL, "gateway-1")
    await usage.reservations.ask(lease)
    calls = tuple(make_event(user_id, clock.now(), credits=cost) for cost in (5, 7, 0))
    await usage.reservations.settle(Settle(lease.id, 1, calls))
    entry_id = await owner.fetchval("SELECT id FROM credit_entries WHERE kind = 'commit'")
    assert await over_correct(usage, user_id, 1, event_id=lease.id) == "USAGE_NOT_FOUND"
    assert await over_correct(usage, user_id, 6, event_id=calls[0].id) == "CORRECTION_LIMIT"
    assert await over_correct(usage, user_id, 1, event_id=calls[2].id) == "CORRECTION_LIMIT"
    await correct(usage, user_id, 4, event_id=calls[0].id)
    assert await left(owner, user_id) == [2, 20]
    assert await over_correct(usage, user_id, 9, entry_id=entry_id) == "CORRECTION_LIMIT"
    assert (await correct(usage, user_id, 8, entry_id=entry_id)).balance.used == 0
    assert await left(owner, user_id) == [10, 20]
    assert await ledger_faults(owner) == []


async def test_a_settlement_of_no_calls_has_nothing_to_correct(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Its entry only gave back."""
    user_id = await with_grants(usage, owner, clock, 10)
    lease = Lease(uuid7(clock.now()), user_id, 5, TTL, "gateway-1")
    await usage.reservations.ask(lease)
    await usage.reservations.settle(Settle(lease.id, 1, ()))
    entry_id = await owner.fetchval("SELECT id FROM credit_entries WHERE kind = 'commit'")
    assert await over_correct(usage, user_id, 1, entry_id=entry_id) == "USAGE_NOT_FOUND"


async def correct_at_once(
    database: Database, owner: Connection, clock: FakeClock, amount: Callable[[int], int]
) -> tuple[Counter[str], int]:
    """20 corrections, over two processes, of a commit that cost 10; and what is used after."""
    async with open_usage(database, clock) as one, open_usage(database, clock) as other:
        user_id = await with_grants(one, owner, clock, 6, 20)
        event_id = await committed(one, user_id, clock, 14, 10)

        async def one_of(index: int) -> str:
            ledger = (one, other)[index % 2].ledger
            while True:
                call = ledger.correct_usage(user_id, amount(index), ACT, event_id=event_id)
                reason = await reason_of(call)
                if reason != "CONFLICT":
                    return reason

        outcomes = Counter(await at_once(20, one_of))
        assert (await one.proofs.verify_account(user_id)).faults == []
        return outcomes, (await one.accounts.get_balance(user_id)).used


async def test_no_more_comes_back_than_a_commit_cost(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Of corrections at once, of all of it or of a little, those are made that fit."""
    outcomes, used = await correct_at_once(usage_database, owner, clock, lambda _: 10)
    assert (outcomes, used) == ({"": 1, "CORRECTION_LIMIT": 19}, 0)
    outcomes, used = await correct_at_once(usage_database, owner, clock, lambda _: 3)
    assert (outcomes, used) == ({"": 3, "CORRECTION_LIMIT": 17}, 1)
    assert await ledger_faults(owner) == []


async def test_by_its_entry_alone_a_commit_would_come_back_wrongly(
    usage: UseCases, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: where only the commit's own draws count, its grants get nothing back."""
    user_id = await with_grants(usage, owner, clock, 10, 20)
    event_id = await committed(usage, user_id, clock, 15, 15)
    monkeypatch.setattr(store, "committed_draws", lambda held, moved, cost: moved)
    await usage.ledger.correct_usage(user_id, 15, ACT, event_id=event_id)
    assert await left(owner, user_id) != [10, 20]
