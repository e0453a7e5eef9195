"""The contracts of the room on the wire: message in, use case, message out."""

from finity.usage.v1 import quota_pb2, quota_pb2_grpc, usage_pb2, usage_pb2_grpc
from grpc import aio

from chassis.pages import PageTokens
from services.usage.rpc.quotas import QuotaServicer
from services.usage.rpc.usage import UsageServicer
from services.usage.service.accounts import AccountService
from services.usage.service.metering import MeteringService
from services.usage.service.quotas import QuotaService
from services.usage.service.room import Room
from services.usage.service.standings import StandingService

CONTRACTS = [
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
    quota_pb2.DESCRIPTOR.services_by_name["QuotaService"],
]


def add_servicers(
    server: aio.Server, room: Room, metering: MeteringService, pages: PageTokens
) -> None:
    """Puts the use cases together and serves every contract of the room."""
    usage = UsageServicer(AccountService(room), metering, pages, room.clock)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(usage, server)
    quotas = QuotaServicer(QuotaService(room), StandingService(room), pages, room.clock)
    quota_pb2_grpc.add_QuotaServiceServicer_to_server(quotas, server)
