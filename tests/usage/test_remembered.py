"""Accounts remembered from flush to flush: one statement less, and never a wrong answer for it."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest

from chassis.ids import uuid7, uuid7_time
from chassis.postgres import Connection, Database
from services.usage.domain.book import Book
from services.usage.domain.calendar import Window
from services.usage.domain.metering import Outcome, Result
from services.usage.domain.quotas import EVERY_TOOL, Scope
from services.usage.domain.standing import Role
from services.usage.service import remembered
from services.usage.service.remembered import MOST_GRANTS, READING_FLUSHES, Remembered
from services.usage.service.use_cases import UseCases
from services.usage.store import optimistic
from services.usage.store.optimistic import Seen
from tests.factories import ledger_faults, make_account, make_event, make_terms, open_usage
from tests.fakes import FakeClock
from tests.usage.test_optimistic import CHANGES, recorded


@pytest.fixture
async def another(usage_database: Database, clock: FakeClock) -> AsyncIterator[UseCases]:
    """A second process over the same database."""
    async with open_usage(usage_database, clock) as other:
        yield other


async def record(usage: UseCases, user_id: UUID, clock: FakeClock, credits: int = 1) -> Result:
    """Records one new call."""
    (result,) = await usage.metering.record([make_event(user_id, clock.now(), credits=credits)])
    return result


async def reads(usage: UseCases, user_id: UUID, clock: FakeClock) -> bool:
    """Records a call that is accepted; tells whether its flush read the account."""
    result, statements = await recorded(usage, make_event(user_id, clock.now()))
    assert result.outcome is Outcome.ACCEPTED
    return any("SELECT g.id" in statement for statement in statements)


async def truth(owner: Connection, user_id: UUID) -> int:
    """Returns what an account has left, as the database says."""
    return int(
        await owner.fetchval(
            "SELECT granted - used - reserved FROM credit_accounts WHERE user_id = $1", user_id
        )
    )


@pytest.mark.parametrize("credits", [0, 1])
async def test_an_account_is_read_once(
    usage: UseCases, owner: Connection, clock: FakeClock, credits: int
) -> None:
    """What was written is known; what cost nothing and what was refused leave it known too."""
    user_id = await make_account(owner, clock, credits=10)
    assert await reads(usage, user_id, clock)
    assert (await record(usage, user_id, clock, credits)).available == 9 - credits
    assert not await reads(usage, user_id, clock)
    assert (await record(usage, user_id, clock, 100)).outcome is Outcome.NO_CREDITS
    assert not await reads(usage, user_id, clock)
    assert await ledger_faults(owner) == []


async def test_flushes_of_known_and_unknown_accounts_read_the_unknown(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Each account is charged for its own calls, remembered or not."""
    known, unknown = [await make_account(owner, clock, credits=10) for _ in range(2)]
    await record(usage, known, clock)
    events = [make_event(user_id, clock.now()) for user_id in (known, unknown, known)]
    results = await usage.metering.record(events)
    assert [result.available for result in results] == [8, 9, 7]
    assert await ledger_faults(owner) == []


@pytest.mark.parametrize("name", CHANGES)
async def test_what_changed_meanwhile_is_noticed(
    usage: UseCases, another: UseCases, owner: Connection, clock: FakeClock, name: str
) -> None:
    """Whatever another process did to a remembered account: the next call goes by what is so."""
    user_id = await make_account(owner, clock, credits=20)
    await record(usage, user_id, clock)
    await CHANGES[name](another, user_id, clock)
    if name == "_limit":
        await record(another, user_id, clock)
    result = await record(usage, user_id, clock)
    refused = {"_limit": Outcome.QUOTA_WINDOW, "_void": Outcome.NO_CREDITS}
    refused["_erase"] = Outcome.ACCOUNT_CLOSED
    assert result.outcome is refused.get(name, Outcome.ACCEPTED)
    assert result.available == (0 if name == "_erase" else await truth(owner, user_id))
    assert await ledger_faults(owner) == []


async def second_call_of_a_limited_role(
    usage: UseCases, another: UseCases, owner: Connection, clock: FakeClock
) -> Outcome:
    """A role gets a quota of one call while an account of it is remembered."""
    user_id = await make_account(owner, clock, credits=10)
    await record(usage, user_id, clock)
    scope = Scope(role=Role.FREE)
    await another.quotas.set_quota(scope, EVERY_TOOL, Window.DAY, max_calls=1, max_credits=None)
    await record(usage, user_id, clock)
    return (await record(usage, user_id, clock)).outcome


async def test_a_quota_of_the_role_holds_for_the_next_call(
    usage: UseCases, another: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """No account's row tells of it; the roles' own rows do."""
    outcome = await second_call_of_a_limited_role(usage, another, owner, clock)
    assert outcome is Outcome.QUOTA_WINDOW


async def test_without_a_look_at_the_roles_it_would_not(
    usage: UseCases,
    another: UseCases,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: accounts that are remembered would have no quota for a while."""
    unguarded = optimistic.WRITE_USE.replace(" = $21\n", " || $21 IS NOT NULL\n")
    assert unguarded != optimistic.WRITE_USE
    monkeypatch.setattr(optimistic, "WRITE_USE", unguarded)
    outcome = await second_call_of_a_limited_role(usage, another, owner, clock)
    assert outcome is Outcome.ACCEPTED


async def test_nobody_is_refused_by_what_is_remembered(
    usage: UseCases, another: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Credits that were granted elsewhere can be spent at once."""
    user_id = await make_account(owner, clock, credits=1)
    assert (await record(usage, user_id, clock)).available == 0
    await another.accounts.grant(user_id, make_terms(source_ref="more", amount=5))
    result = await record(usage, user_id, clock, 5)
    assert (result.outcome, result.available) == (Outcome.ACCEPTED, 0)


async def test_what_expires_while_it_is_remembered_is_not_spent(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Nothing is written when a grant's time is over: the account knows when."""
    user_id = await make_account(owner, clock, credits=2)
    end = clock.now() + timedelta(seconds=10)
    await usage.accounts.grant(user_id, make_terms(source_ref="short", amount=50, expires_at=end))
    assert (await record(usage, user_id, clock)).available == 51
    clock.advance(seconds=11)
    result = await record(usage, user_id, clock, 3)
    assert (result.outcome, result.available) == (Outcome.NO_CREDITS, 2)
    assert await ledger_faults(owner) == []


async def test_after_a_mistake_the_next_flushes_read(
    usage: UseCases, another: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Who shares its accounts with another process seldom tries in vain."""
    shared, own = [await make_account(owner, clock, credits=100) for _ in range(2)]
    for user_id in (shared, own):
        await record(usage, user_id, clock)
    await record(another, shared, clock)
    await record(usage, shared, clock)
    again = [await reads(usage, own, clock) for _ in range(READING_FLUSHES + 2)]
    assert again == [True] * READING_FLUSHES + [False] * 2
    assert await ledger_faults(owner) == []


async def test_an_account_of_two_processes_is_read_for_a_minute(
    usage: UseCases, another: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """One that somebody else was found to write costs the others nothing a second time."""
    shared, own = [await make_account(owner, clock, credits=100) for _ in range(2)]
    await record(usage, shared, clock)
    await record(another, shared, clock)
    for _ in range(READING_FLUSHES + 1):
        await record(usage, shared, clock)
    await record(another, shared, clock)
    assert await reads(usage, own, clock)
    assert await reads(usage, shared, clock)
    assert not await reads(usage, own, clock)
    clock.advance(seconds=remembered.REMEMBERED_FOR.total_seconds())
    assert [await reads(usage, shared, clock) for _ in range(2)] == [True, False]


async def test_an_account_in_use_is_read_once_for_good(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Each write makes it as new: what is forgotten after a minute is what nobody used."""
    user_id = await make_account(owner, clock, credits=10)
    again = []
    for _ in range(4):
        again.append(await reads(usage, user_id, clock))
        clock.advance(seconds=0.7 * remembered.REMEMBERED_FOR.total_seconds())
    assert again == [True, False, False, False]


async def test_accounts_seen_before_and_after_a_role_changed_are_not_mixed(
    usage: UseCases, another: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """One that is read tells of the roles as they are; that says nothing of one remembered."""
    # So many that the flush of the old one begins with one of them, whatever its lane.
    old, *new = [await make_account(owner, clock, credits=10) for _ in range(17)]
    for user_id in new:
        await usage.standings.set_role(user_id, Role.PRO, 1)
    await record(usage, old, clock)
    scope = Scope(role=Role.FREE)
    await another.quotas.set_quota(scope, EVERY_TOOL, Window.DAY, max_calls=0, max_credits=None)
    events = [make_event(user_id, clock.now()) for user_id in (*new, old)]
    outcomes = [result.outcome for result in await usage.metering.record(events)]
    assert outcomes == [Outcome.ACCEPTED] * len(new) + [Outcome.QUOTA_WINDOW]


async def test_entries_have_the_time_of_their_flush(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """An id carries the time at which it was made, not that of the flush before."""
    user_id = await make_account(owner, clock, credits=10)
    for _ in range(3):
        clock.advance(seconds=1)
        await record(usage, user_id, clock)
    rows = await owner.fetch("SELECT id, created_at FROM credit_entries WHERE kind = 'use'")
    assert len(rows) == 3
    assert all(
        abs(uuid7_time(row["id"]) - row["created_at"]) < timedelta(seconds=0.5) for row in rows
    )


def seen(clock: FakeClock, grants: int = 1) -> Seen:
    """An account of nobody."""
    user_id = uuid7(clock.now())
    book = Book(user_id, 1, 0, 0, 0, 0, 1, None, None, lambda: uuid7(clock.now()))
    book.grants = [object()] * grants  # type: ignore[list-item] # only counted
    return Seen(book, 1, "1", clock.now())


def test_an_account_is_taken_once(clock: FakeClock) -> None:
    """While a flush has it nobody else does; strangers are not known."""
    memory, account = Remembered(), seen(clock)
    memory.keep([account])
    user_id = account.book.user_id
    assert memory.take([user_id, uuid7(clock.now())], clock.now()) == {user_id: account}
    assert memory.take([user_id], clock.now()) == {}


def test_nothing_is_remembered_for_long(clock: FakeClock) -> None:
    """Transactions are numbered in a circle; a minute is no part of it."""
    memory, account = Remembered(), seen(clock)
    memory.keep([account])
    clock.advance(seconds=remembered.REMEMBERED_FOR.total_seconds())
    assert memory.take([account.book.user_id], clock.now()) == {}


def test_memory_is_bounded(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were written longest ago go first; those with many grants never come in."""
    monkeypatch.setattr(remembered, "MOST_REMEMBERED", 3)
    memory, accounts = Remembered(), [seen(clock) for _ in range(5)]
    memory.keep([*accounts, seen(clock, grants=MOST_GRANTS + 1)])
    taken = memory.take([account.book.user_id for account in accounts], clock.now())
    assert list(taken) == [account.book.user_id for account in accounts[2:]]
