"""The contracts of the room on the wire: message in, use case, message out."""

from finity.usage.v1 import (
    reservation_pb2,
    reservation_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)
from grpc import aio

from chassis.pages import PageTokens
from services.usage.rpc.reservations import ReservationServicer
from services.usage.rpc.usage import UsageServicer
from services.usage.service.accounts import AccountService
from services.usage.service.metering import MeteringService
from services.usage.service.reservations import ReservationService
from services.usage.service.room import Room

CONTRACTS = [
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
    reservation_pb2.DESCRIPTOR.services_by_name["ReservationService"],
]


def add_servicers(
    server: aio.Server,
    room: Room,
    metering: MeteringService,
    reservations: ReservationService,
    pages: PageTokens,
) -> None:
    """Puts the use cases together and serves every contract of the room."""
    usage = UsageServicer(AccountService(room), metering, pages, room.clock)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(usage, server)
    reserving = ReservationServicer(reservations, room.clock)
    reservation_pb2_grpc.add_ReservationServiceServicer_to_server(reserving, server)
