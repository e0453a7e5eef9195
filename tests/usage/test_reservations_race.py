"""Reservations raced by many callers, with negative controls that take the guards away."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from chassis.errors import Refusal
from chassis.postgres import Connection, Database
from services.usage.domain.requests import Release, Reserve
from services.usage.service.use_cases import UseCases
from services.usage.store import accounts
from tests.factories import (
    at_once,
    drop_guards,
    ledger_faults,
    make_account,
    open_usage,
    reason_of,
    sooner_or_later,
)
from tests.fakes import FakeClock
from tests.usage.holding import a_commit, a_hold, parts, persist, reserve


async def reserve_at_once(
    database: Database, owner: Connection, clock: FakeClock
) -> tuple[Counter[str], int]:
    """1,000 reservations of one credit, over four flushers, for 100; reasons and what is left."""
    user_id = await make_account(owner, clock, credits=100)
    async with AsyncExitStack() as stack:
        flushers = [await stack.enter_async_context(open_usage(database, clock)) for _ in range(4)]

        async def one(index: int) -> str:
            asked = a_hold(user_id, clock, credits=1)
            return await reason_of(persist(flushers[index % 4], asked))

        reasons = Counter(await at_once(1000, one))
        return reasons, (await flushers[0].accounts.get_balance(user_id)).available


async def test_a_thousand_reserve_what_a_hundred_have(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Of 1,000 reservations at once for 100 credits exactly 100 are made, over four flushers."""
    for _ in range(3):
        reasons, available = await reserve_at_once(usage_database, owner, clock)
        assert reasons == {"": 100, "NO_CREDITS": 900}
        assert available == 0
    assert await ledger_faults(owner) == []


async def test_without_the_guards_they_would_hold_more(
    usage_database: Database,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: without lock, constraints and trigger more than 100 are made."""
    for table, constraint in (
        ("credit_accounts", "credit_accounts_not_overdrawn"),
        ("credit_grants", "credit_grants_remaining_in_range"),
        ("credit_entries", "credit_entries_version_key"),
    ):
        await owner.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
    await drop_guards(owner)
    monkeypatch.setattr(accounts, "LOCK", "")

    async def too_many() -> bool:
        reasons, _ = await reserve_at_once(usage_database, owner, clock)
        return reasons[""] > 100

    assert await sooner_or_later(too_many, rounds=10)
    assert await ledger_faults(owner) != []


async def commit_at_once(
    database: Database, owner: Connection, clock: FakeClock
) -> tuple[Counter[str], int]:
    """Five times 50 commits of one reservation, each of another cost, over four flushers."""
    user_id = await make_account(owner, clock, credits=1000)
    reasons: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        flushers = [await stack.enter_async_context(open_usage(database, clock)) for _ in range(4)]
        # Every flusher has its connection before it counts.
        held = await at_once(5, lambda i: reserve(flushers[i % 4], user_id, clock, credits=60))
        for asked in held:

            async def one(index: int, asked: Reserve = asked) -> str:
                return await reason_of(persist(flushers[index % 4], a_commit(asked, index + 1)))

            reasons += Counter(await at_once(50, one))
        return reasons, await owner.fetchval(
            "SELECT count(*) FROM credit_entries WHERE kind = 'commit' AND user_id = $1", user_id
        )


async def test_of_fifty_commits_one_is_done(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Commits of different costs at once: one is done, the others are told so."""
    reasons, entries = await commit_at_once(usage_database, owner, clock)
    assert reasons == {"": 5, "RESERVATION_COMMITTED": 245}
    assert entries == 5
    assert await ledger_faults(owner) == []


async def test_without_the_guards_several_would_be_done(
    usage_database: Database,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: without the lock and the keys one reservation is committed repeatedly."""
    for table, constraint in (
        ("credit_accounts", "credit_accounts_parts_are_not_negative"),
        ("credit_grants", "credit_grants_remaining_in_range"),
        ("credit_entries", "credit_entries_version_key"),
        ("tool_usage", "tool_usage_pkey"),
    ):
        await owner.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
    await drop_guards(owner)
    monkeypatch.setattr(accounts, "LOCK", "")

    async def several() -> bool:
        reasons, entries = await commit_at_once(usage_database, owner, clock)
        return reasons[""] > 5 and entries > 5

    assert await sooner_or_later(several, rounds=10)
    assert await ledger_faults(owner) != []


async def test_the_same_commit_fifty_times_has_one_answer(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """50 equal reservations and then 50 equal commits at once are one of each."""
    user_id = await make_account(owner, clock, credits=100)
    asked = a_hold(user_id, clock)
    reserved = await at_once(50, lambda _: usage.reservations.ask(asked))
    committed = await at_once(50, lambda _: usage.reservations.ask(a_commit(asked, 7)))
    assert (len(set(reserved)), len(set(committed))) == (1, 1)
    assert await parts(usage, user_id) == (93, 100, 7, 0)
    assert await ledger_faults(owner) == []


async def test_an_id_belongs_to_one_user(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Of two users' reservations with one id, in two processes at once, one is made."""
    users = [await make_account(owner, clock, credits=1000) for _ in range(2)]
    async with (
        open_usage(usage_database, clock) as one,
        open_usage(usage_database, clock) as other,
    ):
        for _ in range(30):
            first = a_hold(users[0], clock)
            second = first._replace(user_id=users[1])
            reasons = await asyncio.gather(
                reason_of(persist(one, first)), reason_of(persist(other, second))
            )
            assert set(reasons) == {"", "RESERVATION_ID_REUSED"}
    assert await ledger_faults(owner) == []


async def test_a_commit_at_the_last_moment_wins_or_loses_whole(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Commits, releases and expiry of the same holds at once: each hold has one end."""
    user_id = await make_account(owner, clock, credits=1000)
    async with (
        open_usage(usage_database, clock) as one,
        open_usage(usage_database, clock) as other,
    ):
        held = [await reserve(one, user_id, clock) for _ in range(60)]

        async def race(index: int) -> Any:
            if index == 60:
                clock.advance(minutes=5)
                return await other.standings.mature_due()
            usage, asked = (one, other)[index % 2], held[index % 60]
            await asyncio.sleep(0.001 * (index % 7))
            return await persist(usage, a_commit(asked, 3) if index % 3 else Release(asked.id))

        answers = await at_once(121, race)
        refused = {answer.reason for answer in answers if isinstance(answer, Refusal)}
        assert refused <= {"RESERVATION_COMMITTED", "RESERVATION_RELEASED", "RESERVATION_EXPIRED"}
        assert (await one.accounts.get_balance(user_id)).reserved == 0
    assert await owner.fetchval("SELECT count(*) FROM credit_reservations WHERE state='open'") == 0
    assert await ledger_faults(owner) == []
