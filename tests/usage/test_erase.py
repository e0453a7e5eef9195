"""The account of an erased user: closed once, its ledger balanced, nothing spent any more."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from finity.usage.v1 import usage_pb2
from grpc import StatusCode, aio

from chassis.postgres import Connection, Database
from services.usage.domain.accounts import Balance
from services.usage.domain.book import Book
from services.usage.domain.metering import Outcome, settle
from services.usage.service.use_cases import UseCases
from services.usage.store import accounts
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
    to_wire,
)
from tests.fakes import FakeClock
from tests.running import House, refusal_of


async def test_what_is_left_is_voided(usage: UseCases, owner: Connection, clock: FakeClock) -> None:
    """The credits go with one entry of the ledger, which balances; the recorded calls stay."""
    user_id = await make_account(owner, clock, credits=100)
    event = make_event(user_id, clock.now(), credits=30)
    await usage.metering.record([event])
    closed = await usage.accounts.erase_user(user_id)
    assert (closed.available, closed.granted, closed.used) == (0, 30, 30)
    assert closed.closed_at == clock.now()
    row = await owner.fetchrow(
        "SELECT amount, balance_after, version FROM credit_entries WHERE kind = 'void'"
    )
    assert tuple(row) == (-70, 0, 3)
    assert await ledger_faults(owner) == []
    page, _ = await usage.metering.list_usage(
        user_id=user_id, start=None, end=None, before=None, limit=9
    )
    assert page == [event]


async def test_a_closed_account_stays_closed(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Closing again changes nothing; nothing is granted or spent, not even a call for free."""
    user_id = await make_account(owner, clock, credits=10)
    event = make_event(user_id, clock.now())
    granted, _ = await usage.accounts.grant(user_id, make_terms(source_ref="before"))
    await usage.metering.record([event])
    closed = await usage.accounts.erase_user(user_id)
    clock.advance(days=1)
    assert await usage.accounts.erase_user(user_id) == closed
    assert await reason_of(usage.accounts.grant(user_id, make_terms(source_ref="after"))) == (
        "ACCOUNT_CLOSED"
    )
    again, _ = await usage.accounts.grant(user_id, make_terms(source_ref="before"))
    assert again.id == granted.id
    late = [make_event(user_id, clock.now(), credits=cost) for cost in (0, 1)]
    outcomes = [result.outcome for result in await usage.metering.record([event, *late])]
    assert outcomes == [Outcome.DUPLICATE, Outcome.ACCOUNT_CLOSED, Outcome.ACCOUNT_CLOSED]
    assert await usage.accounts.get_balance(user_id) == closed
    assert await ledger_faults(owner) == []


@pytest.mark.parametrize("signup_credits", [0, 100])
async def test_an_account_opened_too_late_is_closed(
    usage_database: Database, owner: Connection, clock: FakeClock, signup_credits: int
) -> None:
    """Events come in any order: whoever is erased before the account opens gets no credits."""
    user = await make_user(owner, clock)
    async with open_usage(usage_database, clock, signup_credits=signup_credits) as usage:
        closed = await usage.accounts.erase_user(user.id)
        assert await usage.accounts.open_account(user.id) == closed
    assert closed.closed_at == clock.now()
    assert (closed.granted, closed.version) == (0, 0)
    assert await ledger_faults(owner) == []


async def test_nobody_is_not_erased(usage: UseCases) -> None:
    assert await reason_of(usage.accounts.erase_user(uuid4())) == "USER_NOT_FOUND"


async def close_and_spend(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> tuple[UUID, list[Any]]:
    """Closes an account 25 times while 25 calls spend from it and grants come in."""
    user_id = await make_account(owner, clock, credits=1000)

    async def act(index: int) -> Any:
        if index % 2:
            return await usage.accounts.erase_user(user_id)
        if index % 4:
            return await usage.accounts.grant(user_id, make_terms(source_ref=str(index)))
        return (await usage.metering.record([make_event(user_id, clock.now(), credits=3)]))[0]

    return user_id, await at_once(50, act)


async def test_an_account_is_closed_once(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Of 25 calls that close it, one voids the rest, whatever is spent meanwhile."""
    for _ in range(5):
        user_id, answers = await close_and_spend(usage, owner, clock)
        closed = [answer for answer in answers if isinstance(answer, Balance)]
        assert closed == [closed[0]] * 25
        voids = (
            "SELECT count(DISTINCT created_at) FROM credit_entries"
            " WHERE user_id = $1 AND kind = 'void'"
        )
        assert await owner.fetchval(voids, user_id) == 1
    assert await ledger_faults(owner) == []


async def test_without_the_lock_and_the_condition_it_is_closed_twice(
    usage: UseCases, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: looking first and then voiding breaks the ledger."""
    user_id = await make_account(owner, clock, credits=1000)
    await owner.execute(
        "ALTER TABLE credit_accounts DROP CONSTRAINT credit_accounts_closed_is_empty,"
        " DROP CONSTRAINT credit_accounts_parts_are_not_negative,"
        " DROP CONSTRAINT credit_accounts_not_overdrawn"
    )
    await owner.execute("ALTER TABLE credit_entries DROP CONSTRAINT credit_entries_version_key")
    await drop_guards(owner)
    monkeypatch.setattr(accounts, "LOCK", "")
    write, looked = accounts.write_books, asyncio.Barrier(2)

    async def write_later(*args: Any) -> None:
        await looked.wait()
        await write(*args)

    monkeypatch.setattr(accounts, "write_books", write_later)
    await at_once(2, lambda _: usage.accounts.erase_user(user_id))
    voids = "SELECT count(*) FROM credit_entries WHERE kind = 'void'"
    assert await owner.fetchval(voids) == 2
    assert await ledger_faults(owner) != []


def test_a_closed_account_is_told_from_none_and_from_a_busy_one(clock: FakeClock) -> None:
    """The rule by itself: closed, busy and unknown accounts have an outcome each."""
    now = clock.now()
    closed, busy, nobody = (UUID(int=number) for number in range(1, 4))
    book = Book(closed, 5, 0, 0, 0, 0, 1, now, None, uuid4)
    held = Balance(busy, 5, 0, 0, 0, 1)
    events = [make_event(user_id, now) for user_id in (closed, busy, nobody)]
    settlement = settle(events, {closed: book}, [], busy={busy: held})
    assert [result.outcome for result in settlement.results] == [
        Outcome.ACCOUNT_CLOSED,
        Outcome.ACCOUNT_BUSY,
        Outcome.ACCOUNT_NOT_OPEN,
    ]
    assert settlement.accepted == []


async def test_on_the_wire(house: House, clock: FakeClock) -> None:
    """A service erases a user; spending and granting are FAILED_PRECONDITION, a batch goes on."""
    person, other = await house.person(credits=50), await house.person(credits=1)
    erase = usage_pb2.EraseUserRequest(user_id=person.user_id)
    answer = (await house.usage.EraseUser(erase, metadata=house.service)).balance
    assert (answer.available, answer.granted) == (0, 0)
    assert answer.HasField("close_time")
    assert (await house.usage.EraseUser(erase, metadata=house.service)).balance == answer
    mine, theirs = (
        to_wire(make_event(UUID(user.user_id), clock.now())) for user in (person, other)
    )
    calls: list[Any] = [
        house.usage.RecordUsage(usage_pb2.RecordUsageRequest(event=mine), metadata=house.service),
        house.usage.GrantCredits(
            usage_pb2.GrantCreditsRequest(
                user_id=person.user_id, amount=1, source="test", source_ref="late"
            ),
            metadata=house.service,
        ),
    ]
    for call in calls:
        with pytest.raises(aio.AioRpcError) as refused:
            await call
        assert refusal_of(refused.value) == (StatusCode.FAILED_PRECONDITION, "ACCOUNT_CLOSED")
    batch = usage_pb2.RecordUsageBatchRequest(events=[mine, theirs])
    results = (await house.usage.RecordUsageBatch(batch, metadata=house.service)).results
    assert [result.reason for result in results] == ["ACCOUNT_CLOSED", ""]
