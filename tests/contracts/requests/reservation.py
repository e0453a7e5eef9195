"""Requests of ReservationService."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from finity.usage.v1 import reservation_pb2, reservation_pb2_grpc, usage_pb2
from google.protobuf.message import Message

from chassis.ids import uuid7
from tests.contracts.requests.given import Given


async def _reserve(given: Given) -> reservation_pb2.ReserveCreditsRequest:
    """A reservation the account has the credits for; it is whoever's the subject is."""
    caller = given.caller
    own = caller is not None and given.subject in {"", "me", caller.user_id}
    user_id = caller.user_id if caller and own else given.somebody.user_id
    grant = usage_pb2.GrantCreditsRequest(
        user_id=user_id, amount=1, source="contract", source_ref=secrets.token_hex(8)
    )
    await given.house.usage.GrantCredits(grant, metadata=given.house.service)
    return reservation_pb2.ReserveCreditsRequest(
        reservation_id=str(uuid7(given.clock.now())),
        user_id=user_id,
        credits=1,
        tool_name="contract",
    )


async def _reserved(given: Given) -> str:
    """Returns the id of an open reservation."""
    request = await _reserve(given)
    stub = reservation_pb2_grpc.ReservationServiceStub(given.house.usage_channel)
    await stub.ReserveCredits(request, metadata=given.house.service)
    return request.reservation_id


async def _commit(given: Given) -> Message:
    return reservation_pb2.CommitReservationRequest(
        reservation_id=await _reserved(given), credits=1
    )


async def _release(given: Given) -> Message:
    return reservation_pb2.ReleaseReservationRequest(reservation_id=await _reserved(given))


async def _extend(given: Given) -> Message:
    return reservation_pb2.ExtendReservationRequest(reservation_id=await _reserved(given))


async def _get(given: Given) -> Message:
    return reservation_pb2.GetReservationRequest(
        user_id=given.subject, reservation_id=await _reserved(given)
    )


async def _lease(given: Given) -> reservation_pb2.LeaseCreditsRequest:
    request = await _reserve(given)
    return reservation_pb2.LeaseCreditsRequest(
        lease_id=request.reservation_id, user_id=request.user_id, credits=1, holder="contract"
    )


async def _settle(given: Given) -> Message:
    stub = reservation_pb2_grpc.ReservationServiceStub(given.house.usage_channel)
    answer = await stub.LeaseCredits(await _lease(given), metadata=given.house.service)
    call = reservation_pb2.LeasedCall(
        event_id=str(uuid7(given.clock.now())), tool_name="contract", credits=1
    )
    return reservation_pb2.SettleLeaseRequest(
        lease_id=answer.lease.lease_id, fence=answer.lease.fence, calls=[call]
    )


FACTORIES: dict[Any, Callable[[Given], Awaitable[Message]]] = {
    reservation_pb2.ReserveCreditsRequest: _reserve,
    reservation_pb2.CommitReservationRequest: _commit,
    reservation_pb2.ReleaseReservationRequest: _release,
    reservation_pb2.ExtendReservationRequest: _extend,
    reservation_pb2.GetReservationRequest: _get,
    reservation_pb2.LeaseCreditsRequest: _lease,
    reservation_pb2.SettleLeaseRequest: _settle,
}
