"""The contracts of the room on the wire: message in, use case, message out."""

from finity.usage.v1 import report_pb2, report_pb2_grpc, usage_pb2, usage_pb2_grpc
from grpc import aio

from chassis.pages import PageTokens
from services.usage.rpc.report import ReportServicer
from services.usage.rpc.usage import UsageServicer
from services.usage.service.accounts import AccountService
from services.usage.service.metering import MeteringService
from services.usage.service.reports import ReportService
from services.usage.service.room import Room
from services.usage.service.watching import BalanceHub

CONTRACTS = [
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
    report_pb2.DESCRIPTOR.services_by_name["ReportService"],
]


def add_servicers(
    server: aio.Server,
    room: Room,
    metering: MeteringService,
    pages: PageTokens,
    hub: BalanceHub,
) -> None:
    """Puts the use cases together and serves every contract of the room."""
    usage = UsageServicer(AccountService(room), metering, pages, room.clock)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(usage, server)
    reports = ReportServicer(ReportService(room), hub, pages)
    report_pb2_grpc.add_ReportServiceServicer_to_server(reports, server)
