"""ReservationService on the wire: message in, use case, message out."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from finity.usage.v1 import reservation_pb2, reservation_pb2_grpc
from grpc import aio

from chassis.clock import Clock
from chassis.ids import parse_uuid, uuid7_time
from chassis.times import to_timestamp
from services.usage.domain import metering
from services.usage.domain.holds import Hold, State
from services.usage.domain.metering import Event
from services.usage.domain.requests import (
    Commit,
    Extend,
    Lease,
    Overage,
    Release,
    Renewal,
    Reserve,
    Settle,
)
from services.usage.domain.reservations import DEFAULT_TTL
from services.usage.errors import EventTimeOutOfRange
from services.usage.service.reservations import ReservationService

Context = aio.ServicerContext[Any, Any]
_STATES = {
    State.OPEN: reservation_pb2.Reservation.STATE_OPEN,
    State.COMMITTED: reservation_pb2.Reservation.STATE_COMMITTED,
    State.RELEASED: reservation_pb2.Reservation.STATE_RELEASED,
    State.EXPIRED: reservation_pb2.Reservation.STATE_EXPIRED,
}
_OVERAGES = {
    reservation_pb2.OVERAGE_POLICY_UNSPECIFIED: Overage.REFUSE,
    reservation_pb2.OVERAGE_POLICY_REFUSE: Overage.REFUSE,
    reservation_pb2.OVERAGE_POLICY_ALLOW_WITHIN_BALANCE: Overage.WITHIN_BALANCE,
    reservation_pb2.OVERAGE_POLICY_ALLOW_OVERDRAFT: Overage.OVERDRAFT,
}


class ReservationServicer(reservation_pb2_grpc.ReservationServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(self, reservations: ReservationService, clock: Clock) -> None:
        self._reservations = reservations
        self._clock = clock

    async def ReserveCredits(
        self, request: reservation_pb2.ReserveCreditsRequest, context: Context
    ) -> reservation_pb2.ReserveCreditsResponse:
        reservation_id = parse_uuid(request.reservation_id)
        _time_of(reservation_id, self._clock.now())
        asked = Reserve(
            reservation_id,
            parse_uuid(request.user_id),
            request.credits,
            _ttl(request.ttl_seconds),
            request.tool_name,
        )
        hold, available = await self._reservations.ask(asked)
        return reservation_pb2.ReserveCreditsResponse(
            reservation=_reservation(hold), available=available
        )

    async def CommitReservation(
        self, request: reservation_pb2.CommitReservationRequest, context: Context
    ) -> reservation_pb2.CommitReservationResponse:
        asked = Commit(
            parse_uuid(request.reservation_id),
            request.credits,
            _OVERAGES[request.overage_policy],
            request.tool_name,
        )
        hold, available = await self._reservations.ask(asked)
        return reservation_pb2.CommitReservationResponse(
            reservation=_reservation(hold), available=available
        )

    async def ReleaseReservation(
        self, request: reservation_pb2.ReleaseReservationRequest, context: Context
    ) -> reservation_pb2.ReleaseReservationResponse:
        hold, available = await self._reservations.ask(Release(parse_uuid(request.reservation_id)))
        return reservation_pb2.ReleaseReservationResponse(
            reservation=_reservation(hold), available=available
        )

    async def ExtendReservation(
        self, request: reservation_pb2.ExtendReservationRequest, context: Context
    ) -> reservation_pb2.ExtendReservationResponse:
        asked = Extend(parse_uuid(request.reservation_id), _ttl(request.ttl_seconds))
        hold, _ = await self._reservations.ask(asked)
        return reservation_pb2.ExtendReservationResponse(reservation=_reservation(hold))

    async def GetReservation(
        self, request: reservation_pb2.GetReservationRequest, context: Context
    ) -> reservation_pb2.GetReservationResponse:
        hold = await self._reservations.get(UUID(request.user_id), UUID(request.reservation_id))
        return reservation_pb2.GetReservationResponse(reservation=_reservation(hold))

    async def LeaseCredits(
        self, request: reservation_pb2.LeaseCreditsRequest, context: Context
    ) -> reservation_pb2.LeaseCreditsResponse:
        asked = Lease(
            parse_uuid(request.lease_id),
            parse_uuid(request.user_id),
            request.credits,
            _ttl(request.ttl_seconds),
            request.holder,
        )
        hold, available = await self._reservations.ask(asked)
        return reservation_pb2.LeaseCreditsResponse(lease=_lease(hold), available=available)

    async def SettleLease(
        self, request: reservation_pb2.SettleLeaseRequest, context: Context
    ) -> reservation_pb2.SettleLeaseResponse:
        asked = _settle(request, self._clock.now())
        hold, available, renewed = await self._reservations.settle(asked)
        return reservation_pb2.SettleLeaseResponse(
            used=asked.used,
            returned=hold.amount - asked.used,
            renewed=_lease(renewed) if renewed else None,
            available=available,
        )


def _settle(request: reservation_pb2.SettleLeaseRequest, now: datetime) -> Settle:
    lease_id, renewal = parse_uuid(request.lease_id), None
    if request.HasField("renewal"):
        asked = request.renewal
        renewal = Renewal(parse_uuid(asked.lease_id), asked.credits, _ttl(asked.ttl_seconds))
    calls = []
    for call in request.calls:
        event_id = parse_uuid(call.event_id)
        # Whose lease it is, and so whose calls, is found with the lease.
        time = _time_of(event_id, now)
        calls.append(Event(event_id, lease_id, call.tool_name, call.credits, time))
    return Settle(lease_id, request.fence, tuple(calls), renewal)


def _time_of(event_id: UUID, now: datetime) -> datetime:
    """Returns the time of a call; EventTimeOutOfRange outside of the window."""
    time = uuid7_time(event_id)
    if not metering.in_window(time, now):
        raise EventTimeOutOfRange
    return time


def _lease(hold: Hold) -> reservation_pb2.Lease:
    return reservation_pb2.Lease(
        lease_id=str(hold.id),
        user_id=str(hold.user_id),
        holder=hold.holder,
        credits=hold.amount,
        fence=hold.fence,
        create_time=to_timestamp(hold.created_at),
        expire_time=to_timestamp(hold.expires_at),
    )


def _ttl(seconds: int) -> timedelta:
    return timedelta(seconds=seconds) if seconds else DEFAULT_TTL


def _reservation(hold: Hold) -> reservation_pb2.Reservation:
    return reservation_pb2.Reservation(
        reservation_id=str(hold.id),
        user_id=str(hold.user_id),
        credits=hold.amount,
        tool_name=hold.committed_tool or hold.tool_name,
        state=_STATES[hold.state],
        committed_credits=hold.committed or 0,
        create_time=to_timestamp(hold.created_at),
        expire_time=to_timestamp(hold.expires_at),
        resolve_time=to_timestamp(hold.resolved_at) if hold.resolved_at else None,
    )
