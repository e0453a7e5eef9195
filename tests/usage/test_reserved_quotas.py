"""Quotas and reservations: a hold is admitted as the call is that it is for."""

import asyncio
from datetime import timedelta

import pytest

from chassis.errors import Refusal
from chassis.postgres import Connection
from chassis.refusals import Conflict
from services.usage.domain.calendar import Window
from services.usage.service.use_cases import UseCases
from tests.factories import ledger_faults, make_account, make_event, reason_of
from tests.fakes import FakeClock
from tests.usage.holding import a_commit, a_hold, reserve
from tests.usage.test_quotas import limit


async def test_a_hold_is_admitted_by_quotas(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """It counts at once with its credits, and what its commit gives back stays counted."""
    user_id = await make_account(owner, clock, credits=100)
    await limit(usage, user_id, window=Window.DAY, max_credits=25)
    first = await reserve(usage, user_id, clock)
    await usage.reservations.ask(a_commit(first, 3))
    (recorded,) = await usage.metering.record([make_event(user_id, clock.now(), credits=10)])
    assert recorded.outcome.value == "accepted"
    with pytest.raises(Refusal) as refused:
        await usage.reservations.ask(a_hold(user_id, clock))
    assert (refused.value.reason, refused.value.metadata["used"]) == ("QUOTA_WINDOW", "20")
    assert refused.value.retry_after
    # Sent again it is the reservation that was admitted.
    assert (await usage.reservations.ask(first))[0].id == first.id
    clock.advance(seconds=timedelta(days=1).total_seconds())
    await reserve(usage, user_id, clock)
    assert await ledger_faults(owner) == []


async def test_a_minute_is_a_rate(usage: UseCases, owner: Connection, clock: FakeClock) -> None:
    """A quota of a minute is RATE_LIMIT; another tool's holds are not held up by it."""
    user_id = await make_account(owner, clock, credits=100)
    await limit(usage, user_id, tool_name="write", window=Window.MINUTE, max_calls=1)
    await reserve(usage, user_id, clock)
    assert await reason_of(usage.reservations.ask(a_hold(user_id, clock))) == "RATE_LIMIT"
    await reserve(usage, user_id, clock, tool_name="search")


async def test_fifty_holds_at_the_edge(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Of fifty at once as many are admitted as the quota has room for."""
    user_id = await make_account(owner, clock, credits=1000)
    await limit(usage, user_id, window=Window.DAY, max_calls=20)

    async def hold() -> str:
        asked = a_hold(user_id, clock)
        while True:
            try:
                return await reason_of(usage.reservations.ask(asked))
            except Conflict:
                await asyncio.sleep(0)

    reasons = await asyncio.gather(*(hold() for _ in range(50)))
    assert sorted(reasons) == [""] * 20 + ["QUOTA_WINDOW"] * 30
