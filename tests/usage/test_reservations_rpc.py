"""ReservationService through real channels, on both transports."""

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import pytest
from finity.usage.v1 import reservation_pb2, reservation_pb2_grpc, usage_pb2
from grpc import StatusCode, aio

from chassis.ids import uuid7
from chassis.postgres import Connection
from services.usage.domain.metering import NEWEST_EVENT, OLDEST_EVENT
from tests.factories import ledger_faults
from tests.fakes import FakeClock
from tests.running import House, Person, info_of, refusal_of

FAILED = StatusCode.FAILED_PRECONDITION
TAKEN = StatusCode.ALREADY_EXISTS
STATE = reservation_pb2.Reservation


class Desk:
    """The service as an internal caller has it."""

    def __init__(self, house: House, clock: FakeClock) -> None:
        self.stub = reservation_pb2_grpc.ReservationServiceStub(house.usage_channel)
        self.house, self.clock = house, clock

    def asked(self, person: Person, **fields: Any) -> reservation_pb2.ReserveCreditsRequest:
        """A reservation of ten credits."""
        given = {
            "reservation_id": str(uuid7(self.clock.now())),
            "user_id": person.user_id,
            "credits": 10,
            "tool_name": "write",
            **fields,
        }
        return reservation_pb2.ReserveCreditsRequest(**given)

    async def reserve(self, person: Person, **fields: Any) -> reservation_pb2.Reservation:
        request = self.asked(person, **fields)
        answer = await self.stub.ReserveCredits(request, metadata=self.house.service)
        return answer.reservation

    async def commit(
        self, reservation_id: str, credits: int, **fields: Any
    ) -> reservation_pb2.CommitReservationResponse:
        request = reservation_pb2.CommitReservationRequest(
            reservation_id=reservation_id, credits=credits, **fields
        )
        return await self.stub.CommitReservation(request, metadata=self.house.service)

    async def release(self, reservation_id: str) -> reservation_pb2.ReleaseReservationResponse:
        request = reservation_pb2.ReleaseReservationRequest(reservation_id=reservation_id)
        return await self.stub.ReleaseReservation(request, metadata=self.house.service)

    async def extend(self, reservation_id: str, seconds: int) -> reservation_pb2.Reservation:
        request = reservation_pb2.ExtendReservationRequest(
            reservation_id=reservation_id, ttl_seconds=seconds
        )
        answer = await self.stub.ExtendReservation(request, metadata=self.house.service)
        return answer.reservation

    async def get(self, person: Person, reservation_id: str) -> reservation_pb2.Reservation:
        """As the person itself sees it."""
        request = reservation_pb2.GetReservationRequest(user_id="me", reservation_id=reservation_id)
        answer = await self.stub.GetReservation(request, metadata=person.metadata)
        return answer.reservation


@pytest.fixture
def desk(house: House, clock: FakeClock) -> Desk:
    return Desk(house, clock)


async def refusal(call: Awaitable[Any]) -> tuple[StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return refusal_of(caught.value)


async def test_a_call_is_paid_in_two_steps(
    desk: Desk, house: House, clock: FakeClock, owner: Connection
) -> None:
    """Reserved, extended, committed for less; its owner sees it, the balance and the call."""
    person = await house.person(credits=30)
    held = await desk.reserve(person)
    assert (held.state, held.credits, held.tool_name) == (STATE.STATE_OPEN, 10, "write")
    assert held.expire_time.seconds - held.create_time.seconds == 300
    clock.advance(minutes=4)
    assert (await desk.extend(held.reservation_id, 600)).expire_time.ToDatetime() == (
        (clock.now() + timedelta(minutes=10)).replace(tzinfo=None)
    )
    assert not held.HasField("resolve_time")
    done = await desk.commit(held.reservation_id, 4, tool_name="short")
    assert (done.available, done.reservation.committed_credits) == (26, 4)
    seen = await desk.get(person, held.reservation_id)
    assert seen == done.reservation
    assert (seen.state, seen.tool_name) == (STATE.STATE_COMMITTED, "short")
    assert seen.resolve_time.ToDatetime() == clock.now().replace(tzinfo=None)
    listed = await house.usage.ListUsage(
        usage_pb2.ListUsageRequest(user_id="me"), metadata=person.metadata
    )
    assert [(call.event_id, call.credits) for call in listed.records] == [(held.reservation_id, 4)]
    assert await ledger_faults(owner) == []


async def test_every_refusal_has_its_code(desk: Desk, house: House, clock: FakeClock) -> None:
    """Each reason not to do what is asked, as a caller meets it."""
    person, poor = await house.person(credits=60), await house.person()
    held, kept, gone, over = [await desk.reserve(person) for _ in range(4)]
    used, freed, late, open_ = (each.reservation_id for each in (kept, gone, over, held))
    await desk.commit(used, 1)
    assert (await desk.release(freed)).reservation.state == STATE.STATE_RELEASED
    await desk.extend(open_, 3600)
    clock.advance(minutes=5)
    nowhere = str(uuid7(clock.now()))
    missing = (StatusCode.NOT_FOUND, "RESERVATION_NOT_FOUND")
    for call, expected in (
        (desk.commit(used, 2), (FAILED, "RESERVATION_COMMITTED")),
        (desk.release(used), (FAILED, "RESERVATION_COMMITTED")),
        (desk.commit(freed, 1), (FAILED, "RESERVATION_RELEASED")),
        (desk.extend(freed, 1), (FAILED, "RESERVATION_RELEASED")),
        (desk.commit(late, 1), (FAILED, "RESERVATION_EXPIRED")),
        (desk.release(late), (FAILED, "RESERVATION_EXPIRED")),
        (desk.commit(open_, 11), (FAILED, "RESERVATION_EXCEEDED")),
        (desk.reserve(person, reservation_id=open_, credits=9), (TAKEN, "RESERVATION_ID_REUSED")),
        (desk.reserve(poor), (FAILED, "NO_CREDITS")),
        (desk.commit(nowhere, 1), missing),
        (desk.release(nowhere), missing),
        (desk.extend(nowhere, 1), missing),
        (desk.get(person, nowhere), missing),
        (desk.get(poor, open_), missing),
    ):
        assert await refusal(call) == expected
    assert (await desk.get(person, late)).state == STATE.STATE_EXPIRED


async def test_no_credits_says_what_is_short(desk: Desk, house: House) -> None:
    """A caller can show what is missing."""
    person = await house.person(credits=7)
    with pytest.raises(aio.AioRpcError) as caught:
        await desk.reserve(person)
    assert dict(info_of(caught.value).metadata) == {"balance": "7", "credits": "10", "short": "3"}
    assert info_of(caught.value).domain == "usage.finity"


async def test_overage_is_the_caller_s_to_allow(
    desk: Desk, house: House, owner: Connection
) -> None:
    """Each policy on the wire: refused, within the balance, down to the overdraft's limit."""
    person = await house.person(credits=20)
    await owner.execute("UPDATE credit_accounts SET overdraft_limit = 5")
    first, second = [(await desk.reserve(person, credits=5)).reservation_id for _ in range(2)]
    for policy in (
        reservation_pb2.OVERAGE_POLICY_UNSPECIFIED,
        reservation_pb2.OVERAGE_POLICY_REFUSE,
    ):
        call = desk.commit(first, 6, overage_policy=policy)
        assert await refusal(call) == (FAILED, "RESERVATION_EXCEEDED")
    within = reservation_pb2.OVERAGE_POLICY_ALLOW_WITHIN_BALANCE
    overdraft = reservation_pb2.OVERAGE_POLICY_ALLOW_OVERDRAFT
    assert await refusal(desk.commit(first, 16, overage_policy=within)) == (FAILED, "NO_CREDITS")
    assert (await desk.commit(first, 15, overage_policy=within)).available == 0
    assert (await desk.commit(second, 10, overage_policy=overdraft)).available == -5
    assert await ledger_faults(owner) == []


async def test_an_id_s_time_is_the_call_s(desk: Desk, house: House, clock: FakeClock) -> None:
    """As with events: from 35 days back to 5 minutes ahead."""
    person = await house.person(credits=20)
    out = (StatusCode.OUT_OF_RANGE, "EVENT_TIME_OUT_OF_RANGE")
    for after in (-OLDEST_EVENT - timedelta(seconds=1), NEWEST_EVENT + timedelta(seconds=1)):
        old = str(uuid7(clock.now() + after))
        assert await refusal(desk.reserve(person, reservation_id=old)) == out
    oldest = str(uuid7(clock.now() - OLDEST_EVENT + timedelta(seconds=1)))
    await desk.reserve(person, reservation_id=oldest)
    await desk.commit(oldest, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"credits": 0},
        {"credits": 1_000_001},
        {"tool_name": ""},
        {"ttl_seconds": -1},
        {"ttl_seconds": 86_401},
        {"reservation_id": "5f1c7b52-6d2c-4a37-9f0e-000000000000"},
    ],
)
async def test_what_breaks_the_contract_is_refused(
    desk: Desk, house: House, fields: dict[str, Any]
) -> None:
    """Bounds of the contract."""
    person = await house.person(credits=20)
    assert await refusal(desk.reserve(person, **fields)) == (
        StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
