"""Leases: a block of credits that one holder burns, settled once, fenced by the next."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from finity.usage.v1 import reservation_pb2, reservation_pb2_grpc
from grpc import StatusCode, aio

from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from services.usage.domain.requests import Lease, Release, Renewal, Settle
from services.usage.service.reservations import ReservationService
from services.usage.service.use_cases import UseCases
from tests.factories import (
    at_once,
    ledger_faults,
    make_account,
    make_event,
    open_usage,
    reason_of,
)
from tests.fakes import FakeClock
from tests.running import House, info_of, refusal_of
from tests.usage.holding import TTL, a_commit, a_hold, parts, persist


def a_lease(user_id: UUID, clock: FakeClock, **changes: Any) -> Lease:
    """A lease of fifty credits by one gateway."""
    return Lease(uuid7(clock.now()), user_id, 50, TTL, "gateway-1")._replace(**changes)


def a_settlement(lease: Lease, fence: int, clock: FakeClock, *costs: int, **changes: Any) -> Settle:
    """The settlement of calls of these costs."""
    calls = tuple(make_event(lease.user_id, clock.now(), credits=cost) for cost in costs)
    return Settle(lease.id, fence, calls)._replace(**changes)


async def test_a_lease_is_burned_and_settled(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """What was burned is recorded call by call, the rest comes back; again it is answered alike."""
    user_id = await make_account(owner, clock, credits=100)
    asked = a_lease(user_id, clock)
    hold, available = await usage.reservations.ask(asked)
    assert (hold.fence, hold.amount, available) == (1, 50, 50)
    assert await usage.reservations.ask(asked) == (hold, available)
    assert await parts(usage, user_id) == (50, 100, 0, 50)
    settlement = a_settlement(asked, 1, clock, 3, 0, 4)
    first = await usage.reservations.settle(settlement)
    assert (first[0].committed, first[1], first[2]) == (7, 93, None)
    clock.advance(hours=1)
    assert await usage.reservations.settle(settlement) == first
    assert await parts(usage, user_id) == (93, 100, 7, 0)
    assert await owner.fetchval("SELECT count(*) FROM tool_usage") == 3
    assert await ledger_faults(owner) == []


async def test_a_settled_lease_is_renewed(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """The next lease is as large as there is for it, or none; a repeat tells the same."""
    user_id = await make_account(owner, clock, credits=60)
    asked = a_lease(user_id, clock)
    await usage.reservations.ask(asked)
    renewal = Renewal(uuid7(clock.now()), 50, TTL)
    settlement = a_settlement(asked, 1, clock, 20, renewal=renewal)
    first = await usage.reservations.settle(settlement)
    assert first[2] is not None
    assert (first[2].amount, first[2].fence, first[1]) == (40, 2, 0)
    assert await usage.reservations.settle(settlement) == first
    following = asked._replace(id=renewal.id)
    last = Renewal(uuid7(clock.now()), 50, TTL)
    done = await usage.reservations.settle(a_settlement(following, 2, clock, 40, renewal=last))
    assert (done[1], done[2]) == (0, None)
    assert await parts(usage, user_id) == (0, 60, 60, 0)
    assert await ledger_faults(owner) == []


async def test_an_older_lease_is_fenced(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """A holder that starts again has its credits back at once; the one before cannot settle."""
    user_id = await make_account(owner, clock, credits=60)
    old, new = a_lease(user_id, clock), a_lease(user_id, clock)
    await usage.reservations.ask(old)
    # Another holder has fences of its own, and there is not enough for a lease like this.
    other = a_lease(user_id, clock, holder="gateway-2", credits=10)
    assert (await usage.reservations.ask(other))[0].fence == 1
    more = a_lease(user_id, clock, credits=51)
    assert await reason_of(usage.reservations.ask(more)) == "NO_CREDITS"
    assert (await usage.reservations.ask(new))[0].fence == 2
    assert await parts(usage, user_id) == (0, 60, 0, 60)
    for settlement in (
        a_settlement(old, 1, clock, 1),
        a_settlement(new, 1, clock, 1),
        a_settlement(new, 3, clock, 1),
    ):
        assert await reason_of(usage.reservations.settle(settlement)) == "LEASE_FENCED"
    await usage.reservations.settle(a_settlement(new, 2, clock, 50))
    assert await parts(usage, user_id) == (0, 60, 50, 10)
    assert await ledger_faults(owner) == []


async def test_a_settlement_is_refused_by_reason(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """More than is held, ids that are taken, another settlement, too late, no lease."""
    user_id = await make_account(owner, clock, credits=200)
    asked, plain = a_lease(user_id, clock), a_hold(user_id, clock)
    over = a_lease(user_id, clock, holder="gateway-2", ttl=timedelta(seconds=1))
    for request in (asked, plain, over):
        await usage.reservations.ask(request)
    clock.advance(seconds=1)
    event = make_event(user_id, clock.now())
    await usage.metering.record([event])
    good = a_settlement(asked, 1, clock, 5)
    for settlement, reason in (
        (a_settlement(asked, 1, clock, 30, 21), "RESERVATION_EXCEEDED"),
        (good._replace(calls=(event,)), "EVENT_ID_REUSED"),
        (good._replace(calls=good.calls * 2), "EVENT_ID_REUSED"),
        (good._replace(renewal=Renewal(plain.id, 1, TTL)), "RESERVATION_ID_REUSED"),
        (a_settlement(over, 1, clock, 1), "RESERVATION_EXPIRED"),
        (good._replace(id=plain.id), "RESERVATION_NOT_FOUND"),
        (good._replace(id=uuid7(clock.now())), "RESERVATION_NOT_FOUND"),
    ):
        assert await reason_of(usage.reservations.settle(settlement)) == reason
    await usage.reservations.settle(good)
    again = a_settlement(asked, 1, clock, 5)
    assert await reason_of(usage.reservations.settle(again)) == "RESERVATION_COMMITTED"
    for request in (asked._replace(credits=1), asked._replace(id=plain.id)):
        assert await reason_of(usage.reservations.ask(request)) == "RESERVATION_ID_REUSED"
    # A lease is no reservation to commit or to give back.
    for other in (Release(asked.id), a_commit(plain._replace(id=asked.id), 1)):
        assert await reason_of(usage.reservations.ask(other)) == "RESERVATION_NOT_FOUND"
    assert await ledger_faults(owner) == []


async def test_of_fifty_settlements_one_is_done(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Settlements of one lease and leases of its holder at once, in two processes."""
    user_id = await make_account(owner, clock, credits=1000)
    async with (
        open_usage(usage_database, clock) as one,
        open_usage(usage_database, clock) as other,
    ):
        asked = a_lease(user_id, clock)
        await one.reservations.ask(asked)

        async def settle(index: int) -> str:
            usage = (one, other)[index % 2]
            settlement = a_settlement(asked, 1, clock, index % 50)
            return await reason_of(persist(usage, settlement))

        reasons = Counter(await at_once(50, settle))
        assert reasons == {"": 1, "RESERVATION_COMMITTED": 49}
        leases = [a_lease(user_id, clock) for _ in range(50)]
        taken = await at_once(50, lambda i: persist((one, other)[i % 2], leases[i]))
        assert sorted(hold.fence for hold, _ in taken) == list(range(2, 52))
        assert (await one.accounts.get_balance(user_id)).reserved == 50
    assert await ledger_faults(owner) == []


async def test_leases_on_the_wire(house: House, clock: FakeClock, owner: Connection) -> None:
    """Taken, settled and renewed by RPC; an old fence is refused with the one that counts."""
    person = await house.person(credits=100)
    stub = reservation_pb2_grpc.ReservationServiceStub(house.usage_channel)
    taken = await stub.LeaseCredits(
        reservation_pb2.LeaseCreditsRequest(
            lease_id=str(uuid7(clock.now())), user_id=person.user_id, credits=60, holder="node"
        ),
        metadata=house.service,
    )
    assert (taken.lease.credits, taken.lease.fence, taken.available) == (60, 1, 40)
    call = reservation_pb2.LeasedCall(event_id=str(uuid7(clock.now())), tool_name="w", credits=9)
    request = reservation_pb2.SettleLeaseRequest(
        lease_id=taken.lease.lease_id,
        fence=1,
        calls=[call],
        renewal=reservation_pb2.LeaseRenewal(lease_id=str(uuid7(clock.now())), credits=30),
    )
    settled = await stub.SettleLease(request, metadata=house.service)
    assert (settled.used, settled.returned, settled.available) == (9, 51, 61)
    assert (settled.renewed.fence, settled.renewed.credits) == (2, 30)
    assert await stub.SettleLease(request, metadata=house.service) == settled
    old = reservation_pb2.SettleLeaseRequest(lease_id=settled.renewed.lease_id, fence=1)
    with pytest.raises(aio.AioRpcError) as caught:
        await stub.SettleLease(old, metadata=house.service)
    assert refusal_of(caught.value) == (StatusCode.FAILED_PRECONDITION, "LEASE_FENCED")
    assert dict(info_of(caught.value).metadata) == {"fence": "2"}
    assert await ledger_faults(owner) == []


async def test_a_settlement_waits_as_all_its_calls(usage: UseCases, clock: FakeClock) -> None:
    """The queue's bound holds for what there is to write, however few the callers are."""
    desk = ReservationService(replace(usage.reservations._room, queue_events=2000))
    lease = a_lease(uuid7(clock.now()), clock)
    settlements = [a_settlement(lease, 1, clock, *[1] * 999) for _ in range(3)]
    waiting = [asyncio.create_task(desk.settle(each)) for each in settlements[:2]]
    await asyncio.sleep(0)
    assert await reason_of(desk.settle(settlements[2])) == "OVERLOADED"
    for task in waiting:
        task.cancel()
