"""Credits and metering as use cases: grants, batches, races, the ledger's invariants."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from chassis.postgres import Connection, Database
from chassis.refusals import Overloaded
from services.usage.domain.accounts import Balance
from services.usage.domain.grants import Category
from services.usage.domain.metering import NEWEST_EVENT, OLDEST_EVENT, Event, Outcome, Result
from services.usage.service.use_cases import UseCases
from services.usage.store import accounts, optimistic
from tests.factories import (
    at_once,
    drop_guards,
    ledger_faults,
    make_account,
    make_event,
    make_terms,
    make_user,
    open_usage,
    reason_of,
    sooner_or_later,
)
from tests.fakes import FakeClock


async def settled(usage: UseCases, events: Sequence[Event]) -> list[Outcome]:
    """Records events, again while somebody else holds an account, as a caller would."""
    outcomes = [result.outcome for result in await usage.metering.record(events)]
    while busy := [i for i, outcome in enumerate(outcomes) if outcome is Outcome.ACCOUNT_BUSY]:
        again = await usage.metering.record([events[i] for i in busy])
        for i, result in zip(busy, again, strict=True):
            outcomes[i] = result.outcome
    return outcomes


async def record(usage: UseCases, event: Event) -> Outcome:
    return (await settled(usage, [event]))[0]


async def test_an_account_opens_with_its_allowance_once(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """However often the event comes, alone or 50 at once, the allowance is granted once."""
    user_id = (await make_user(owner, clock)).id
    async with open_usage(usage_database, clock, signup_credits=100) as usage:
        await at_once(50, lambda _: usage.accounts.open_account(user_id))
        for _ in range(5):
            balance = await usage.accounts.open_account(user_id)
            assert (balance.available, balance.version) == (100, 1)
    # A later allowance is for later accounts.
    async with open_usage(usage_database, clock, signup_credits=500) as usage:
        assert (await usage.accounts.open_account(user_id)).available == 100
    assert await ledger_faults(owner) == []


async def test_a_new_account_may_start_empty(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Without an allowance the account opens with nothing; before, there is no balance."""
    user_id = (await make_user(owner, clock)).id
    assert await reason_of(usage.accounts.get_balance(user_id)) == "ACCOUNT_NOT_OPEN"
    assert (await usage.accounts.open_account(user_id)).available == 0
    assert await usage.accounts.get_balance(user_id) == Balance(user_id, 0, 0, 0, 0, 0)
    assert await reason_of(usage.accounts.open_account(uuid4())) == "USER_NOT_FOUND"


async def test_a_grant_is_given_once(usage: UseCases, owner: Connection, clock: FakeClock) -> None:
    """50 grants of one source and source_ref add its credits once and answer alike."""
    user_id = (await make_user(owner, clock)).id
    answers = await at_once(50, lambda _: usage.accounts.grant(user_id, make_terms()))
    assert len({grant.id for grant, _ in answers}) == 1
    assert {balance.available for _, balance in answers} == {100}
    other = await usage.accounts.grant(user_id, make_terms(source_ref="other"))
    assert other[1].available == 200
    assert await ledger_faults(owner) == []


@pytest.mark.parametrize("changed", [{"amount": 101}, {"priority": 1}, {"category": Category.PAID}])
async def test_a_grant_reference_is_bound_to_its_terms(
    usage: UseCases, owner: Connection, clock: FakeClock, changed: dict[str, Any]
) -> None:
    """The same reference with other terms is GRANT_REF_REUSED and adds nothing."""
    user_id = await make_account(owner, clock)
    await usage.accounts.grant(user_id, make_terms())
    assert (
        await reason_of(usage.accounts.grant(user_id, make_terms(**changed))) == "GRANT_REF_REUSED"
    )
    assert (await usage.accounts.get_balance(user_id)).available == 100


async def test_a_refused_grant_leaves_nothing(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """USER_NOT_FOUND and BALANCE_LIMIT roll everything back."""
    assert await reason_of(usage.accounts.grant(uuid4(), make_terms())) == "USER_NOT_FOUND"
    user_id = await make_account(owner, clock, credits=1)
    await usage.accounts.grant(user_id, make_terms(source_ref="most", amount=10**15 - 1))
    terms = make_terms(source_ref="one too many", amount=1)
    assert await reason_of(usage.accounts.grant(user_id, terms)) == "BALANCE_LIMIT"
    assert await owner.fetchval("SELECT count(*) FROM credit_grants") == 2


async def test_a_batch_answers_each_event_in_order(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Accepted, duplicate, reused, short of credits, without account: one never sinks the rest."""
    ada, now = await make_account(owner, clock, credits=5), clock.now()
    nobody = (await make_user(owner, clock)).id
    first = make_event(ada, now, credits=2)
    events = [
        first,
        first,
        make_event(ada, now, event_id=first.id, credits=3),
        make_event(ada, now, credits=4),
        make_event(nobody, now),
        make_event(ada, now, credits=0),
        make_event(ada, now, credits=3),
    ]
    outcomes = [result.outcome for result in await usage.metering.record(events)]
    assert outcomes == [
        Outcome.ACCEPTED,
        Outcome.DUPLICATE,
        Outcome.EVENT_ID_REUSED,
        Outcome.NO_CREDITS,
        Outcome.ACCOUNT_NOT_OPEN,
        Outcome.ACCEPTED,
        Outcome.ACCEPTED,
    ]
    assert (await usage.accounts.get_balance(ada)).available == 0
    assert await ledger_faults(owner) == []


async def test_an_event_is_metered_once(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """50 records of one event spend its credits once; the same id for another event is refused."""
    user_id = await make_account(owner, clock, credits=100)
    event = make_event(user_id, clock.now(), credits=7)
    outcomes = Counter(await at_once(50, lambda _: record(usage, event)))
    assert outcomes == {Outcome.ACCEPTED: 1, Outcome.DUPLICATE: 49}
    clock.advance(hours=1)
    assert await record(usage, event) is Outcome.DUPLICATE
    for other in (
        make_event(user_id, event.time, event_id=event.id, credits=8),
        make_event(user_id, event.time, event_id=event.id, credits=7, tool_name="write"),
    ):
        assert await record(usage, other) is Outcome.EVENT_ID_REUSED
    assert (await usage.accounts.get_balance(user_id)).used == 7


async def test_an_event_id_belongs_to_one_user(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Of two users' events with one id, in two processes at once, one is metered."""
    users = [await make_account(owner, clock, credits=1000) for _ in range(2)]
    async with (
        open_usage(usage_database, clock) as one,
        open_usage(usage_database, clock) as other,
    ):
        for _ in range(30):
            first = make_event(users[0], clock.now())
            second = make_event(users[1], clock.now(), event_id=first.id)
            answers = await asyncio.gather(record(one, first), record(other, second))
            assert set(answers) == {Outcome.ACCEPTED, Outcome.EVENT_ID_REUSED}
    assert await ledger_faults(owner) == []


async def test_credits_burn_across_grants(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Spending empties grants by priority, then promotional before paid, then by age."""
    user_id = await make_account(owner, clock)
    grants = {}
    for name, priority, category in (
        ("paid", 50, Category.PAID),
        ("gift", 50, Category.PROMOTIONAL),
        ("later gift", 50, Category.PROMOTIONAL),
        ("last", 90, Category.PROMOTIONAL),
        ("first", 10, Category.PAID),
    ):
        clock.advance(seconds=1)
        terms = make_terms(source_ref=name, amount=10, priority=priority, category=category)
        grants[name] = (await usage.accounts.grant(user_id, terms))[0].id

    async def left() -> dict[str, int]:
        rows = await owner.fetch(
            "SELECT source_ref, remaining FROM credit_grants WHERE remaining < 10"
        )
        return {row["source_ref"]: row["remaining"] for row in rows}

    await usage.metering.record([make_event(user_id, clock.now(), credits=15)])
    assert await left() == {"first": 0, "gift": 5}
    await usage.metering.record([make_event(user_id, clock.now(), credits=12)])
    assert await left() == {"first": 0, "gift": 0, "later gift": 3}
    await usage.metering.record([make_event(user_id, clock.now(), credits=20)])
    assert await left() == {"first": 0, "gift": 0, "later gift": 0, "paid": 0, "last": 3}
    assert await ledger_faults(owner) == []


async def test_a_held_account_holds_up_nobody_else(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """While somebody holds an account its events are told to come back; others are metered."""
    held, free = [await make_account(owner, clock, credits=10) for _ in range(2)]
    known = make_event(held, clock.now(), credits=4)
    await usage.metering.record([known])
    events = [make_event(user_id, clock.now()) for user_id in (held, free)]
    async with owner.transaction():
        await accounts.lock_books(owner, [held], clock.now())
        outcomes = [result.outcome for result in await usage.metering.record(events)]
        assert outcomes == [Outcome.ACCOUNT_BUSY, Outcome.ACCEPTED]
        # What was recorded before needs no lock to be told, with the balance as it stands.
        assert await usage.metering.record([known]) == [Result(Outcome.DUPLICATE, available=6)]
    assert await settled(usage, events) == [Outcome.ACCEPTED, Outcome.DUPLICATE]
    assert await ledger_faults(owner) == []


async def test_an_overdraft_is_spent_without_draws(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Down to its limit an account may go below zero; what no grant covers has no draw."""
    user_id = await make_account(owner, clock, credits=5)
    await owner.execute("UPDATE credit_accounts SET overdraft_limit = 3")
    (result,) = await usage.metering.record([make_event(user_id, clock.now(), credits=8)])
    assert (result.outcome, result.available) == (Outcome.ACCEPTED, -3)
    assert await record(usage, make_event(user_id, clock.now())) is Outcome.NO_CREDITS
    assert await owner.fetchval("SELECT sum(d) FROM credit_entries, unnest(drawn) AS d") == 5


async def test_every_month_of_the_window_has_room(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """An event at each edge and each day of the window lands, now and three months from now."""
    user_id = await make_account(owner, clock, credits=10_000)
    for _ in range(2):
        now = clock.now()
        oldest = now - OLDEST_EVENT
        times = [oldest + (now - oldest) / 35 * day for day in range(36)]
        times.append(now + NEWEST_EVENT)
        results = await usage.metering.record([make_event(user_id, time) for time in times])
        assert {result.outcome for result in results} == {Outcome.ACCEPTED}
        # Nobody restarts the service meanwhile.
        clock.advance(days=91)
    await at_once(10, lambda _: usage.metering.make_partitions())
    assert await usage.metering.make_partitions() == 0
    assert await ledger_faults(owner) == []


async def test_what_does_not_fit_the_queue_is_refused(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Beyond the queue an event is OVERLOADED with a delay; what was taken is answered."""
    user_id = await make_account(owner, clock, credits=1000)
    async with open_usage(usage_database, clock, queue_events=10) as usage:
        calls = (record(usage, make_event(user_id, clock.now())) for _ in range(200))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        refusals = [answer for answer in answers if isinstance(answer, Overloaded)]
        accepted = [answer for answer in answers if answer is Outcome.ACCEPTED]
        assert len(refusals) + len(accepted) == 200
        assert refusals
        assert all(refusal.retry_after for refusal in refusals)
        assert (await usage.accounts.get_balance(user_id)).used == len(accepted)


async def spend_at_once(
    database: Database, owner: Connection, clock: FakeClock
) -> tuple[Counter[Outcome], int]:
    """1,000 events of one credit, over four flushers, for 100 credits; outcomes and balance."""
    user_id = await make_account(owner, clock, credits=100)
    async with AsyncExitStack() as stack:
        flushers = [await stack.enter_async_context(open_usage(database, clock)) for _ in range(4)]

        async def spend(index: int) -> Outcome:
            return await record(flushers[index % 4], make_event(user_id, clock.now()))

        outcomes = Counter(await at_once(1000, spend))
        return outcomes, (await flushers[0].accounts.get_balance(user_id)).available


async def test_a_thousand_spend_what_a_hundred_have(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Of 1,000 events at once for 100 credits exactly 100 are accepted, over four flushers."""
    for _ in range(3):
        outcomes, available = await spend_at_once(usage_database, owner, clock)
        assert outcomes == {Outcome.ACCEPTED: 100, Outcome.NO_CREDITS: 900}
        assert available == 0
    assert await ledger_faults(owner) == []


async def test_without_the_guards_they_would_overspend(
    usage_database: Database,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: without the locks and the constraints more than 100 are accepted."""

    for table, constraint in (
        ("credit_accounts", "credit_accounts_not_overdrawn"),
        ("credit_grants", "credit_grants_remaining_in_range"),
        ("credit_entries", "credit_entries_version_key"),
    ):
        await owner.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
    await drop_guards(owner)
    monkeypatch.setattr(accounts, "LOCK", "")
    unguarded = optimistic.WRITE_USE.replace(" AND a.xmin = s.seen", "").replace("SKIP LOCKED", "")
    assert "s.seen\n" not in unguarded
    monkeypatch.setattr(optimistic, "WRITE_USE", unguarded)

    async def spends_more() -> bool:
        outcomes, _ = await spend_at_once(usage_database, owner, clock)
        return outcomes[Outcome.ACCEPTED] > 100

    assert await sooner_or_later(spends_more)
    assert await ledger_faults(owner) != []


async def test_the_constraint_alone_keeps_an_account_from_going_negative(
    usage_database: Database,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Should the lock ever be forgotten, no more is spent than there is: callers are refused."""

    monkeypatch.setattr(accounts, "LOCK", "")
    user_id = await make_account(owner, clock, credits=100)
    async with (
        open_usage(usage_database, clock) as one,
        open_usage(usage_database, clock) as other,
    ):
        calls = (
            (one, other)[index % 2].metering.record([make_event(user_id, clock.now())])
            for index in range(400)
        )
        await asyncio.gather(*calls, return_exceptions=True)
        balance = await one.accounts.get_balance(user_id)
    assert 0 <= balance.available <= 100
    assert await ledger_faults(owner) == []


@pytest.mark.parametrize("seed", range(4))
async def test_the_ledger_adds_up_after_anything(
    usage_database: Database, owner: Connection, clock: FakeClock, seed: int
) -> None:
    """After random grants, events, repeats and collisions at once every invariant holds."""
    dice = random.Random(seed)  # noqa: S311
    users = [await make_account(owner, clock, credits=dice.randrange(60)) for _ in range(6)]
    pool = [
        make_event(
            dice.choice(users),
            clock.now() - OLDEST_EVENT * dice.random(),
            credits=dice.choice([0, 1, 2, 30]),
            tool_name=dice.choice(["search", "write"]),
        )
        for _ in range(150)
    ]
    async with AsyncExitStack() as stack:
        flushers = [
            await stack.enter_async_context(open_usage(usage_database, clock)) for _ in range(2)
        ]

        async def act(_: int) -> None:
            usage = dice.choice(flushers)
            if dice.random() < 0.3:
                terms = make_terms(
                    source_ref=str(dice.randrange(8)),
                    amount=dice.choice([5, 20]),
                    priority=dice.choice([10, 50]),
                )
                await usage.accounts.grant(dice.choice(users), terms)
            else:
                await usage.metering.record(dice.sample(pool, dice.randrange(1, 12)))

        refused = [answer for answer in await at_once(150, act) if answer is not None]
    assert {refusal.reason for refusal in refused} <= {"GRANT_REF_REUSED"}
    assert await ledger_faults(owner) == []
    assert await owner.fetchval("SELECT count(*) FROM tool_usage") > 0
    assert await owner.fetchval("SELECT min(granted - used) FROM credit_accounts") >= 0


async def test_the_room_cannot_edit_its_ledger(
    usage: UseCases, usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Entries, draws and events are insert-only for the service's own role."""
    user_id = await make_account(owner, clock, credits=5)
    await usage.metering.record([make_event(user_id, clock.now())])
    for statement in (
        "UPDATE credit_entries SET amount = -2",
        "DELETE FROM credit_entries",
        "UPDATE tool_usage SET credits_used = 0",
        "DELETE FROM tool_usage",
        "DELETE FROM credit_accounts",
    ):
        async with usage_database.connection() as conn:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await conn.execute(statement)
