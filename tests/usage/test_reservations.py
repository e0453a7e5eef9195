"""Reservations as use cases: held once, resolved once, given back in time."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from services.usage.domain.holds import State
from services.usage.domain.requests import Extend, Overage, Release, Request
from services.usage.service.use_cases import UseCases
from services.usage.store import accounts
from tests.factories import (
    at_once,
    ledger_faults,
    make_account,
    make_event,
    make_terms,
    make_user,
    open_usage,
    reason_of,
)
from tests.fakes import FakeClock
from tests.usage.holding import TTL, a_commit, a_hold, parts, reserve


async def test_a_commit_uses_what_it_says_and_gives_the_rest_back(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Held credits are not available; of ten seven are used, three come back, one call is there."""
    user_id = await make_account(owner, clock, credits=100)
    asked = await reserve(usage, user_id, clock)
    assert await parts(usage, user_id) == (90, 100, 0, 10)
    hold, available = await usage.reservations.ask(a_commit(asked, 7))
    assert (hold.state, hold.committed, available) == (State.COMMITTED, 7, 93)
    assert await parts(usage, user_id) == (93, 100, 7, 0)
    (call,), _ = await usage.metering.list_usage(
        user_id=user_id, start=None, end=None, before=None, limit=10
    )
    assert (call.id, call.tool_name, call.credits) == (asked.id, "write", 7)
    assert await ledger_faults(owner) == []


@pytest.mark.parametrize("used", [0, 10])
async def test_a_commit_may_use_all_or_nothing(
    usage: UseCases, owner: Connection, clock: FakeClock, used: int
) -> None:
    """A call that cost nothing is recorded all the same, under the tool that was called."""
    user_id = await make_account(owner, clock, credits=10)
    asked = await reserve(usage, user_id, clock)
    await usage.reservations.ask(a_commit(asked, used, tool_name="other"))
    assert await parts(usage, user_id) == (10 - used, 10, used, 0)
    assert await owner.fetchval("SELECT tool_name FROM tool_usage WHERE id = $1", asked.id) == (
        "other"
    )
    assert await ledger_faults(owner) == []


async def test_a_release_gives_all_back(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Nothing is used, nothing is recorded."""
    user_id = await make_account(owner, clock, credits=10)
    asked = await reserve(usage, user_id, clock)
    hold, available = await usage.reservations.ask(Release(asked.id))
    assert (hold.state, available) == (State.RELEASED, 10)
    assert await parts(usage, user_id) == (10, 10, 0, 0)
    assert await owner.fetchval("SELECT count(*) FROM tool_usage") == 0
    assert await ledger_faults(owner) == []


async def test_the_same_call_again_gets_the_first_answer(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Reserve, Commit and Release answer a repeat as they did at first, whatever came since."""
    user_id = await make_account(owner, clock, credits=100)
    kept, gone = a_hold(user_id, clock), a_hold(user_id, clock)
    requests: list[Request] = [kept, gone, a_commit(kept, 7), Release(gone.id)]
    firsts = [(request, await usage.reservations.ask(request)) for request in requests]
    await usage.accounts.grant(user_id, make_terms(source_ref="more"))
    clock.advance(hours=30)
    for request, first in firsts:
        assert await usage.reservations.ask(request) == first
    assert await parts(usage, user_id) == (193, 200, 7, 0)
    assert await ledger_faults(owner) == []


async def test_a_reservation_is_resolved_once(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Once resolved, anything else is refused by what became of it."""
    user_id = await make_account(owner, clock, credits=100)
    kept, gone, over = [await reserve(usage, user_id, clock) for _ in range(3)]
    await usage.reservations.ask(a_commit(kept, 7))
    await usage.reservations.ask(Release(gone.id))
    clock.advance(minutes=5)
    for asked, reason in (
        (kept, "RESERVATION_COMMITTED"),
        (gone, "RESERVATION_RELEASED"),
        (over, "RESERVATION_EXPIRED"),
    ):
        others: Sequence[Request] = (
            a_commit(asked, 8),
            a_commit(asked, 7, tool_name="other"),
            Extend(asked.id, TTL),
            *([] if asked is gone else [Release(asked.id)]),
        )
        for request in others:
            assert await reason_of(usage.reservations.ask(request)) == reason
    assert await parts(usage, user_id) == (93, 100, 7, 0)
    assert await ledger_faults(owner) == []


async def test_what_is_refused_changes_nothing(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Each refusal by its reason; the account and the reservation stay as they were."""
    user_id, other = [await make_account(owner, clock, credits=20) for _ in range(2)]
    nobody = (await make_user(owner, clock)).id
    asked = await reserve(usage, user_id, clock)
    event = make_event(user_id, clock.now())
    await usage.metering.record([event])
    for request, reason in (
        (asked._replace(credits=11), "RESERVATION_ID_REUSED"),
        (asked._replace(user_id=other), "RESERVATION_ID_REUSED"),
        (asked._replace(ttl=TTL * 2), "RESERVATION_ID_REUSED"),
        (asked._replace(tool_name="x"), "RESERVATION_ID_REUSED"),
        (a_hold(user_id, clock), "NO_CREDITS"),
        (a_hold(nobody, clock), "ACCOUNT_NOT_OPEN"),
        (a_hold(user_id, clock, id=event.id, credits=1), "EVENT_ID_REUSED"),
        (a_commit(a_hold(user_id, clock), 1), "RESERVATION_NOT_FOUND"),
        (Release(uuid7(clock.now())), "RESERVATION_NOT_FOUND"),
        (Extend(uuid7(clock.now()), TTL), "RESERVATION_NOT_FOUND"),
        (a_commit(asked, 11), "RESERVATION_EXCEEDED"),
        (a_commit(asked, 20, overage=Overage.WITHIN_BALANCE), "NO_CREDITS"),
        (a_commit(asked, 20, overage=Overage.OVERDRAFT), "NO_CREDITS"),
    ):
        assert await reason_of(usage.reservations.ask(request)) == reason, request
        assert await parts(usage, user_id) == (9, 20, 1, 10)
    await usage.accounts.erase_user(other)
    assert await reason_of(usage.reservations.ask(a_hold(other, clock))) == "ACCOUNT_CLOSED"
    assert await reason_of(usage.reservations.get(user_id, event.id)) == "RESERVATION_NOT_FOUND"
    assert await reason_of(usage.reservations.get(other, asked.id)) == "RESERVATION_NOT_FOUND"
    assert await ledger_faults(owner) == []


async def test_what_is_short_is_said(usage: UseCases, owner: Connection, clock: FakeClock) -> None:
    """A refusal says what is there, what was asked for beyond it and what is missing."""
    user_id = await make_account(owner, clock, credits=15)
    asked = await reserve(usage, user_id, clock)
    refusals = await at_once(
        4,
        lambda index: usage.reservations.ask(
            (
                a_hold(user_id, clock, credits=8),
                a_commit(asked, 18, overage=Overage.WITHIN_BALANCE),
                a_commit(asked, 19, overage=Overage.OVERDRAFT),
                a_commit(asked, 12),
            )[index]
        ),
    )
    assert [refusal.metadata for refusal in refusals] == [
        {"balance": "5", "credits": "8", "short": "3"},
        {"balance": "5", "credits": "8", "short": "3"},
        {"balance": "5", "credits": "9", "short": "4"},
        {"held": "10", "credits": "12"},
    ]


async def test_a_call_recorded_under_the_hold_s_id_cannot_be_committed(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Its id is taken: the commit is refused, the hold can still be released."""
    user_id = await make_account(owner, clock, credits=20)
    asked = await reserve(usage, user_id, clock)
    await usage.metering.record([make_event(user_id, clock.now(), event_id=asked.id)])
    assert await reason_of(usage.reservations.ask(a_commit(asked, 1))) == "EVENT_ID_REUSED"
    await usage.reservations.ask(Release(asked.id))
    assert await parts(usage, user_id) == (19, 20, 1, 0)
    assert await ledger_faults(owner) == []


async def test_more_than_is_held_needs_a_policy(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Within the balance, and then down to the overdraft's limit."""
    user_id = await make_account(owner, clock, credits=30)
    await owner.execute("UPDATE credit_accounts SET overdraft_limit = 5")
    first, second = [await reserve(usage, user_id, clock) for _ in range(2)]
    _, available = await usage.reservations.ask(a_commit(first, 18, overage=Overage.WITHIN_BALANCE))
    assert available == 2
    within = a_commit(second, 13, overage=Overage.WITHIN_BALANCE)
    assert await reason_of(usage.reservations.ask(within)) == "NO_CREDITS"
    _, available = await usage.reservations.ask(a_commit(second, 17, overage=Overage.OVERDRAFT))
    assert available == -5
    assert await reason_of(usage.reservations.ask(a_hold(user_id, clock))) == "NO_CREDITS"
    assert await ledger_faults(owner) == []


async def test_what_comes_back_pays_debt(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Calls on overdraft are paid by a hold that comes back, before its grant keeps anything."""
    user_id = await make_account(owner, clock, credits=10)
    await owner.execute("UPDATE credit_accounts SET overdraft_limit = 50")
    asked = await reserve(usage, user_id, clock)
    await usage.metering.record([make_event(user_id, clock.now(), credits=4)])
    assert await owner.fetchval("SELECT debt FROM credit_accounts") == 4
    await usage.reservations.ask(Release(asked.id))
    assert await owner.fetchval("SELECT debt FROM credit_accounts") == 0
    assert await owner.fetchval("SELECT remaining FROM credit_grants") == 6
    assert await ledger_faults(owner) == []


async def test_a_hold_ends_by_itself(usage: UseCases, owner: Connection, clock: FakeClock) -> None:
    """At its end the credits are back, whoever looks; before it they are not."""
    user_id = await make_account(owner, clock, credits=10)
    asked = await reserve(usage, user_id, clock)
    clock.advance(minutes=5, microseconds=-1)
    assert await parts(usage, user_id) == (0, 10, 0, 10)
    clock.advance(microseconds=1)
    assert await parts(usage, user_id) == (10, 10, 0, 0)
    hold = await usage.reservations.get(user_id, asked.id)
    assert (hold.state, hold.resolved_at) == (State.EXPIRED, hold.expires_at)
    # The credits of a hold that is over are there for the next one at once.
    first = await reserve(usage, user_id, clock)
    clock.advance(minutes=5)
    await reserve(usage, user_id, clock)
    assert (await usage.reservations.get(user_id, first.id)).state is State.EXPIRED
    assert await ledger_faults(owner) == []


async def test_asking_about_a_hold_that_is_over_ends_it(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """GetReservation never shows an open hold whose time is over."""
    user_id = await make_account(owner, clock, credits=10)
    asked = await reserve(usage, user_id, clock)
    assert (await usage.reservations.get(user_id, asked.id)).state is State.OPEN
    clock.advance(minutes=5)
    assert (await usage.reservations.get(user_id, asked.id)).state is State.EXPIRED
    assert await ledger_faults(owner) == []


async def test_a_hold_is_extended_from_now(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Its end moves to a time from now and never back; past it, it is over."""
    user_id = await make_account(owner, clock, credits=10)
    asked = await reserve(usage, user_id, clock)
    clock.advance(minutes=4)
    for ttl, ends in ((TTL, 5), (TTL * 2, 10), (TTL, 10)):
        hold, _ = await usage.reservations.ask(Extend(asked.id, ttl))
        assert hold.expires_at == clock.now() + timedelta(minutes=ends)
    clock.advance(minutes=9)
    assert await parts(usage, user_id) == (0, 10, 0, 10)
    assert await ledger_faults(owner) == []
    clock.advance(minutes=1)
    assert await parts(usage, user_id) == (10, 10, 0, 0)
    assert await ledger_faults(owner) == []


async def test_a_grant_that_expires_meanwhile_still_pays(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """What is committed of it is honoured, what comes back of it expires at once."""
    user_id = await make_account(owner, clock)
    later, soon = clock.now() + timedelta(days=9), clock.now() + timedelta(minutes=1)
    await usage.accounts.grant(user_id, make_terms(source_ref="a", amount=10, expires_at=soon))
    await usage.accounts.grant(user_id, make_terms(source_ref="b", amount=10, expires_at=later))
    asked = await reserve(usage, user_id, clock, credits=15)
    clock.advance(minutes=2)
    assert await parts(usage, user_id) == (5, 20, 0, 15)
    # Five come back to the later grant, two to the one that is over.
    _, available = await usage.reservations.ask(a_commit(asked, 8))
    assert available == 10
    assert await parts(usage, user_id) == (10, 18, 8, 0)
    clock.advance(days=9)
    assert await parts(usage, user_id) == (0, 8, 8, 0)
    assert await ledger_faults(owner) == []


async def test_what_comes_back_to_a_closed_account_is_voided(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """A call that was running may still be committed, within its hold; the rest is gone."""
    user_id = await make_account(owner, clock, credits=40)
    kept, gone, over = [await reserve(usage, user_id, clock) for _ in range(3)]
    await usage.accounts.erase_user(user_id)
    assert await parts(usage, user_id) == (0, 30, 0, 30)
    more = a_commit(kept, 11, overage=Overage.WITHIN_BALANCE)
    assert await reason_of(usage.reservations.ask(more)) == "ACCOUNT_CLOSED"
    await usage.reservations.ask(a_commit(kept, 4))
    await usage.reservations.ask(Release(gone.id))
    clock.advance(minutes=5)
    assert await usage.standings.mature_due() == 1
    assert await parts(usage, user_id) == (0, 4, 4, 0)
    assert (await usage.reservations.get(user_id, over.id)).state is State.EXPIRED
    assert await ledger_faults(owner) == []


async def test_the_sweeper_ends_what_nobody_asks_about(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Holds end, grants begin and expire; two sweepers share the work; then nothing is due."""
    users = [await make_account(owner, clock, credits=10) for _ in range(30)]
    async with (
        open_usage(usage_database, clock) as one,
        open_usage(usage_database, clock) as other,
    ):
        for user_id in users:
            await reserve(one, user_id, clock)
        later = make_terms(
            source_ref="later",
            amount=5,
            effective_at=clock.now() + timedelta(minutes=1),
            expires_at=clock.now() + timedelta(minutes=20),
        )
        await one.accounts.grant(users[0], later)
        assert await one.standings.mature_due() == 0
        clock.advance(minutes=5)
        swept = await asyncio.gather(one.standings.mature_due(), other.standings.mature_due())
        assert sum(swept) == 30
        assert await owner.fetchval("SELECT sum(reserved) FROM credit_accounts") == 0
        assert await owner.fetchval("SELECT sum(granted) FROM credit_accounts") == 305
        clock.advance(minutes=15)
        assert await one.standings.mature_due() == 1
        assert await owner.fetchval("SELECT sum(granted) FROM credit_accounts") == 300
        assert await owner.fetchval("SELECT count(due_at) FROM credit_accounts") == 0
    assert await ledger_faults(owner) == []


async def test_a_held_account_holds_up_nobody_else(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """While somebody holds an account its reservations are to come back; others are made."""
    held, free = [await make_account(owner, clock, credits=40) for _ in range(2)]
    kept, done = [await reserve(usage, held, clock) for _ in range(2)]
    first = await usage.reservations.ask(a_commit(done, 1))
    requests: list[Request] = [a_hold(held, clock), a_commit(kept, 1), a_hold(free, clock)]
    async with owner.transaction():
        await accounts.lock_books(owner, [held], clock.now())
        calls = (reason_of(usage.reservations.ask(request)) for request in requests)
        assert await asyncio.gather(*calls) == ["CONFLICT", "CONFLICT", ""]
        # What is resolved needs no lock to be told.
        assert await usage.reservations.ask(a_commit(done, 1)) == first
    for request in requests:
        await usage.reservations.ask(request)
    assert await ledger_faults(owner) == []
