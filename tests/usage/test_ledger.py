"""The ledger by hand as use cases: terms of grants, voids, adjustments, corrections, races."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis import idempotency
from chassis.errors import Refusal
from chassis.idempotency import Key
from chassis.postgres import Connection, Database
from services.usage.domain.accounts import Kind
from services.usage.service.ledger import Act, Done
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
    sooner_or_later,
)
from tests.fakes import FakeClock

ACT = Act("service:test", "because")


def keyed(key: str, request: bytes = b"") -> Act:
    return Act("service:test", "because", Key("service:test", "/m", key, request))


async def available(usage: UseCases, user_id: UUID) -> int:
    return (await usage.accounts.get_balance(user_id)).available


async def remaining(owner: Connection, user_id: UUID) -> dict[str, int]:
    rows = await owner.fetch(
        "SELECT source_ref, remaining FROM credit_grants WHERE user_id = $1", user_id
    )
    return {row["source_ref"]: row["remaining"] for row in rows}


async def spend(usage: UseCases, user_id: UUID, clock: FakeClock, *costs: int) -> list[UUID]:
    """Records calls that cost so much in one flush; returns their ids."""
    events = [make_event(user_id, clock.now(), credits=cost) for cost in costs]
    await usage.metering.record(events)
    return [event.id for event in events]


async def test_a_grant_has_a_begin_and_an_end(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """It counts from its begin to its end; sent again after that it is the same grant."""
    user_id = await make_account(owner, clock)
    begin, end = clock.now() + timedelta(days=1), clock.now() + timedelta(days=2)
    terms = make_terms(effective_at=begin, expires_at=end)
    first, balance = await usage.accounts.grant(user_id, terms, actor="user:ada")
    assert balance.available == 0
    # Whoever looks when it begins, it was given by ada.
    clock.advance(days=1)
    assert await available(usage, user_id) == 100
    clock.advance(days=1)
    assert await available(usage, user_id) == 0
    clock.advance(days=1)
    again, _ = await usage.accounts.grant(user_id, terms)
    assert again.id == first.id
    actors = await owner.fetch("SELECT kind, actor FROM credit_entries ORDER BY version")
    assert [tuple(row) for row in actors] == [("grant", "user:ada"), ("expire", None)]
    assert await ledger_faults(owner) == []


async def test_a_grant_that_would_be_over_is_refused(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """An end at or before its begin, or in the past, is GRANT_EXPIRY_PASSED and leaves nothing."""
    user_id, now = await make_account(owner, clock), clock.now()
    for begin, end in (
        (None, now),
        (None, now - timedelta(seconds=1)),
        (now + timedelta(days=1), now + timedelta(days=1)),
        (now - timedelta(days=2), now - timedelta(days=1)),
    ):
        terms = make_terms(effective_at=begin, expires_at=end)
        assert await reason_of(usage.accounts.grant(user_id, terms)) == "GRANT_EXPIRY_PASSED"
    assert await remaining(owner, user_id) == {}


async def test_grants_are_listed_in_burn_order(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Page by page what can burn now or later; the next expiries are summed by time."""
    user_id, now = await make_account(owner, clock), clock.now()
    days = [timedelta(days=day) for day in range(4)]
    for name, begin, end in (
        ("never", None, None),
        ("second", None, now + days[2]),
        ("gone", None, now + days[1]),
        ("later", now + days[2], now + days[3]),
        ("second too", None, now + days[2]),
    ):
        clock.advance(seconds=1)
        terms = make_terms(source_ref=name, amount=10, effective_at=begin, expires_at=end)
        await usage.accounts.grant(user_id, terms)
    clock.advance(days=1)
    names: list[str] = []
    after, more = None, True
    while more:
        page, more, expiries = await usage.ledger.list_grants(user_id, after=after, limit=2)
        names += [grant.terms.source_ref for grant in page]
        after = page[-1].burn_order
        assert expiries == [(now + days[2], 20)]
    assert names == ["second", "second too", "later", "never"]


async def test_entries_are_listed_newest_first(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Every version once, over pages."""
    user_id = await make_account(owner, clock, credits=100)
    for _ in range(4):
        await spend(usage, user_id, clock, 2)
    versions: list[int] = []
    before, more = None, True
    while more:
        page, more = await usage.ledger.list_entries(user_id, before=before, limit=2)
        versions += [posting.version for posting in page]
        before = versions[-1]
    assert versions == [5, 4, 3, 2, 1]


async def test_a_balance_is_told_of_any_past_instant(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """What was due but unwritten counts at its time; before the account there was nothing."""
    born = clock.now()
    clock.advance(hours=1)
    user_id = await make_account(owner, clock, credits=100)
    start = clock.now()
    clock.advance(hours=1)
    end = clock.now() + timedelta(hours=1)
    await usage.accounts.grant(user_id, make_terms(source_ref="x", amount=50, expires_at=end))
    middle = clock.now()
    clock.advance(hours=3)
    told = [
        (await usage.ledger.balance_at(user_id, at))[1:]
        for at in (born, start, middle - timedelta(seconds=1), middle, end, clock.now())
    ]
    assert told == [(0, 0), (100, 1), (100, 1), (150, 2), (100, 3), (100, 3)]
    ahead = usage.ledger.balance_at(user_id, clock.now() + timedelta(seconds=1))
    assert await reason_of(ahead) == "AS_OF_TIME_AHEAD"
    nobody = (await make_user(owner, clock)).id
    assert await reason_of(usage.ledger.balance_at(nobody, born)) == "ACCOUNT_NOT_OPEN"


async def test_a_grant_is_voided_once(usage: UseCases, owner: Connection, clock: FakeClock) -> None:
    """What is left goes, 50 callers or one; a grant still to begin never does; who and why stay."""
    user_id = await make_account(owner, clock, credits=100)
    later = make_terms(source_ref="later", effective_at=clock.now() + timedelta(days=1))
    pending, _ = await usage.accounts.grant(user_id, later)
    await spend(usage, user_id, clock, 30)
    grant_id = await owner.fetchval("SELECT id FROM credit_grants WHERE source_ref = 'start'")
    answers = await at_once(50, lambda _: usage.ledger.void_grant(user_id, grant_id, ACT))
    assert {balance.available for _, balance in answers} == {0}
    await usage.ledger.void_grant(user_id, pending.id, ACT)
    clock.advance(days=2)
    assert await available(usage, user_id) == 0
    voids = await owner.fetch("SELECT amount, actor, note FROM credit_entries WHERE kind = 'void'")
    assert [tuple(row) for row in voids] == [(-70, "service:test", "because")]
    assert await owner.fetchval("SELECT count(*) FROM credit_grants WHERE voided_by <> ''") == 2
    other = await make_account(owner, clock, credits=1)
    for user, grant in ((user_id, uuid4()), (other, grant_id)):
        assert await reason_of(usage.ledger.void_grant(user, grant, ACT)) == "GRANT_NOT_FOUND"
    assert await ledger_faults(owner) == []


async def test_without_the_lock_it_is_voided_twice(
    usage: UseCases, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: looking first and then voiding leaves two entries, and no sound ledger."""
    user_id = await make_account(owner, clock, credits=100)
    grant_id = await owner.fetchval("SELECT id FROM credit_grants")
    await owner.execute("ALTER TABLE credit_entries DROP CONSTRAINT credit_entries_version_key")
    await drop_guards(owner)
    monkeypatch.setattr(accounts, "LOCK", "")
    write, looked = accounts.write_books, asyncio.Barrier(2)

    async def write_later(*args: Any) -> None:
        await looked.wait()
        await write(*args)

    monkeypatch.setattr(accounts, "write_books", write_later)
    await at_once(2, lambda _: usage.ledger.void_grant(user_id, grant_id, ACT))
    voids = "SELECT count(*) FROM credit_entries WHERE kind = 'void'"
    assert await owner.fetchval(voids) == 2
    assert await ledger_faults(owner) != []


async def test_a_limit_is_set_once(usage: UseCases, owner: Connection, clock: FakeClock) -> None:
    """50 callers who set the same limit leave one entry."""
    user_id = await make_account(owner, clock, credits=1)
    await at_once(50, lambda _: usage.ledger.set_overdraft_limit(user_id, 5, ACT))
    limits = "SELECT count(*) FROM credit_entries WHERE kind = 'limit'"
    assert await owner.fetchval(limits) == 1
    assert await ledger_faults(owner) == []


async def test_an_adjustment_adds_a_grant_or_takes_in_burn_order(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Both leave exact draws and name who did it; nothing goes below the overdraft limit."""
    user_id = await make_account(owner, clock, credits=10)
    clock.advance(seconds=1)
    posting, balance, grant = await usage.ledger.adjust_credits(user_id, 5, ACT)
    assert (posting.kind, posting.amount, balance.available) == (Kind.GRANT, 5, 15)
    assert grant is not None
    assert grant.terms.source == "finity:adjustment"
    posting, balance, _ = await usage.ledger.adjust_credits(user_id, -12, ACT)
    assert (posting.kind, posting.amount, balance.available) == (Kind.ADJUST, -12, 3)
    assert [draw.amount for draw in posting.draws] == [10, 2]
    assert (posting.actor, posting.note) == ("service:test", "because")
    with pytest.raises(Refusal) as refused:
        await usage.ledger.adjust_credits(user_id, -4, ACT)
    assert refused.value.reason == "NO_CREDITS"
    assert refused.value.metadata == {"balance": "3", "credits": "4"}
    await usage.ledger.set_overdraft_limit(user_id, 20, ACT)
    assert (await usage.ledger.adjust_credits(user_id, -23, ACT)).balance.available == -20
    assert await ledger_faults(owner) == []


async def test_the_overdraft_limit_is_kept_in_the_ledger(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Setting it leaves an entry, setting it again none; below the debt it is OVERDRAFT_IN_USE."""
    user_id = await make_account(owner, clock, credits=1)
    for _ in range(2):
        assert (await usage.ledger.set_overdraft_limit(user_id, 5, ACT)).version == 2
    note = "SELECT note FROM credit_entries WHERE kind = 'limit'"
    assert await owner.fetchval(note) == "0 -> 5: because"
    await spend(usage, user_id, clock, 6)
    call = usage.ledger.set_overdraft_limit(user_id, 4, ACT)
    assert await reason_of(call) == "OVERDRAFT_IN_USE"
    await usage.accounts.grant(user_id, make_terms(source_ref="pays", amount=5))
    assert (await usage.ledger.set_overdraft_limit(user_id, 0, ACT)).available == 0
    assert await ledger_faults(owner) == []


async def test_a_closed_account_is_left_alone(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Of an erased user nothing is adjusted or corrected; nor of one without an account."""
    closed = await make_account(owner, clock, credits=10)
    (event_id,) = await spend(usage, closed, clock, 5)
    await usage.accounts.erase_user(closed)
    nobody = (await make_user(owner, clock)).id
    calls: list[Callable[[UUID], Any]] = [
        lambda user: usage.ledger.adjust_credits(user, 1, ACT),
        lambda user: usage.ledger.set_overdraft_limit(user, 1, ACT),
        lambda user: usage.ledger.correct_usage(user, 1, ACT, event_id=event_id),
    ]
    for call in calls:
        assert await reason_of(call(closed)) == "ACCOUNT_CLOSED"
        assert await reason_of(call(nobody)) == "ACCOUNT_NOT_OPEN"
    assert await ledger_faults(owner) == []


async def test_a_correction_unwinds_the_draws(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Last drawn, first given back; more than once, up to what the call cost."""
    user_id, now = await make_account(owner, clock), clock.now()
    for day in (1, 2):
        terms = make_terms(source_ref=str(day), amount=10, expires_at=now + timedelta(days=day))
        await usage.accounts.grant(user_id, terms)
    (event_id,) = await spend(usage, user_id, clock, 15)
    assert await remaining(owner, user_id) == {"1": 0, "2": 5}
    done = await usage.ledger.correct_usage(user_id, 3, ACT, event_id=event_id)
    assert await remaining(owner, user_id) == {"1": 0, "2": 8}
    assert (done.balance.used, done.balance.available) == (12, 8)
    await usage.ledger.correct_usage(user_id, 12, ACT, event_id=event_id)
    assert await remaining(owner, user_id) == {"1": 10, "2": 10}
    with pytest.raises(Refusal) as refused:
        await usage.ledger.correct_usage(user_id, 1, ACT, event_id=event_id)
    assert refused.value.reason == "CORRECTION_LIMIT"
    assert refused.value.metadata == {"correctable": "0"}
    assert await owner.fetchval("SELECT credits FROM usage_rollups") == 0
    assert await owner.fetchval("SELECT credits_used FROM tool_usage") == 15
    assert await ledger_faults(owner) == []


async def test_a_flush_is_corrected_call_by_call_or_whole(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """A call of a flush gets back what it cost alone; the entry what all its calls have left."""
    user_id = await make_account(owner, clock, credits=100)
    first, *_ = await spend(usage, user_id, clock, 5, 7, 0)
    entry_id = await owner.fetchval("SELECT id FROM credit_entries WHERE kind = 'use'")
    correct = usage.ledger.correct_usage
    assert await reason_of(correct(user_id, 6, ACT, event_id=first)) == "CORRECTION_LIMIT"
    await correct(user_id, 4, ACT, event_id=first)
    assert await reason_of(correct(user_id, 9, ACT, entry_id=entry_id)) == "CORRECTION_LIMIT"
    assert (await correct(user_id, 8, ACT, entry_id=entry_id)).balance.used == 0
    assert await ledger_faults(owner) == []


async def test_what_comes_back_to_a_grant_that_is_over_goes_at_once(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """An expired grant's credits expire, a voided one's are voided; used goes down all the same."""
    user_id, now = await make_account(owner, clock), clock.now()
    ends = make_terms(source_ref="ends", amount=10, expires_at=now + timedelta(days=1))
    await usage.accounts.grant(user_id, ends)
    voided, _ = await usage.accounts.grant(user_id, make_terms(source_ref="voided", amount=10))
    (event_id,) = await spend(usage, user_id, clock, 20)
    await usage.ledger.void_grant(user_id, voided.id, ACT)
    clock.advance(days=2)
    done = await usage.ledger.correct_usage(user_id, 20, ACT, event_id=event_id)
    assert (done.balance.used, done.balance.available) == (0, 0)
    kinds = await owner.fetch("SELECT kind, amount FROM credit_entries ORDER BY version DESC")
    assert [tuple(row) for row in kinds[:3]] == [("expire", -10), ("void", -10), ("reverse", 20)]
    assert await ledger_faults(owner) == []


async def test_corrected_overdraft_lowers_the_debt_or_is_a_grant(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """What no later grant has paid is owed no more; what one has paid comes back as a grant."""
    user_id = await make_account(owner, clock)
    await usage.ledger.set_overdraft_limit(user_id, 10, ACT)
    (event_id,) = await spend(usage, user_id, clock, 10)
    await usage.accounts.grant(user_id, make_terms(source_ref="pays", amount=6))
    done = await usage.ledger.correct_usage(user_id, 7, ACT, event_id=event_id)
    assert done.balance.available == 3
    assert done.grant is not None
    assert (done.grant.terms.source, done.grant.remaining) == ("finity:correction", 3)
    done = await usage.ledger.correct_usage(user_id, 3, ACT, event_id=event_id)
    assert done.balance.available == 6
    assert await owner.fetchval("SELECT debt FROM credit_accounts") == 0
    assert await ledger_faults(owner) == []


async def test_only_what_was_spent_is_corrected(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Another user's call, none, one for nothing, an entry of no calls: USAGE_NOT_FOUND."""
    user_id = await make_account(owner, clock, credits=10)
    other = await make_account(owner, clock, credits=10)
    theirs, free = await spend(usage, other, clock, 1), await spend(usage, user_id, clock, 0)
    granted = await owner.fetchval("SELECT id FROM credit_entries WHERE user_id = $1", user_id)
    for target in (
        {"event_id": theirs[0]},
        {"event_id": uuid4()},
        {"event_id": free[0]},
        {"entry_id": granted},
    ):
        call = usage.ledger.correct_usage(user_id, 1, ACT, **target)
        assert await reason_of(call) == "USAGE_NOT_FOUND"


async def test_a_key_is_good_for_one_request(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """50 calls with one key do it once and answer alike; another request is refused."""
    user_id = await make_account(owner, clock, credits=100)
    (event_id,) = await spend(usage, user_id, clock, 50)
    ledger = usage.ledger
    answers: list[Done] = await at_once(
        50, lambda _: ledger.correct_usage(user_id, 5, keyed("c"), event_id=event_id)
    )
    assert len({answer.posting.id for answer in answers}) == 1
    answers = await at_once(50, lambda _: ledger.adjust_credits(user_id, -5, keyed("a")))
    assert {answer.balance.available for answer in answers} == {50}
    again = ledger.adjust_credits(user_id, -6, keyed("a", b"other"))
    assert await reason_of(again) == "IDEMPOTENCY_KEY_REUSED"
    assert await available(usage, user_id) == 50
    assert await ledger_faults(owner) == []


async def correct_at_once(
    database: Database, owner: Connection, clock: FakeClock
) -> tuple[Counter[str], UUID]:
    """50 corrections of one credit, over four processes, of a call that cost 10."""
    user_id = await make_account(owner, clock, credits=10)
    async with open_usage(database, clock) as one, open_usage(database, clock) as other:
        (event_id,) = await spend(one, user_id, clock, 10)

        async def correct(index: int) -> str:
            ledger = (one, other)[index % 2].ledger
            while True:
                call = ledger.correct_usage(user_id, 1, ACT, event_id=event_id)
                reason = await reason_of(call)
                if reason != "CONFLICT":
                    return reason

        return Counter(await at_once(50, correct)), user_id


async def test_no_more_comes_back_than_was_spent(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Of 50 corrections at once of a call that cost 10 credits exactly 10 are made."""
    for _ in range(3):
        outcomes, _ = await correct_at_once(usage_database, owner, clock)
        assert outcomes == {"": 10, "CORRECTION_LIMIT": 40}
    assert await ledger_faults(owner) == []


async def test_without_the_lock_more_would_come_back(
    usage_database: Database,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: without the lock and the constraints the ledger breaks."""
    for table, constraint in (
        ("credit_entries", "credit_entries_version_key"),
        ("credit_grants", "credit_grants_remaining_in_range"),
        ("credit_accounts", "credit_accounts_parts_are_not_negative"),
    ):
        await owner.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
    await drop_guards(owner)
    monkeypatch.setattr(accounts, "LOCK", "")

    async def breaks() -> bool:
        await correct_at_once(usage_database, owner, clock)
        return await ledger_faults(owner) != []

    assert await sooner_or_later(breaks)


async def test_without_a_key_it_would_be_done_again(
    usage: UseCases, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: where keys are not looked at, 50 adjustments are 50."""
    user_id = await make_account(owner, clock, credits=100)

    async def careless(*args: Any, now: object) -> Any:
        return await args[-1]()

    monkeypatch.setattr(idempotency, "once", careless)
    await at_once(50, lambda _: usage.ledger.adjust_credits(user_id, -1, keyed("a")))
    assert await available(usage, user_id) < 99


async def test_corrections_are_never_edited(usage_database: Database) -> None:
    """The role that serves may add corrections, and change or delete none."""
    async with usage_database.connection() as conn:
        for statement in (
            "UPDATE usage_corrections SET credits = 1",
            "DELETE FROM usage_corrections",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await conn.execute(statement)
