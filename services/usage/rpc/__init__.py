"""The contracts of the room on the wire: message in, use case, message out."""

from finity.usage.v1 import (
    ledger_pb2,
    ledger_pb2_grpc,
    quota_pb2,
    quota_pb2_grpc,
    report_pb2,
    report_pb2_grpc,
    reservation_pb2,
    reservation_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)
from grpc import aio

from chassis.pages import PageTokens
from services.usage.rpc.ledger import LedgerServicer
from services.usage.rpc.quotas import QuotaServicer
from services.usage.rpc.report import ReportServicer
from services.usage.rpc.reservations import ReservationServicer
from services.usage.rpc.usage import UsageServicer
from services.usage.service.use_cases import UseCases
from services.usage.service.watching import BalanceHub

CONTRACTS = [
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
    reservation_pb2.DESCRIPTOR.services_by_name["ReservationService"],
    ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"],
    report_pb2.DESCRIPTOR.services_by_name["ReportService"],
    quota_pb2.DESCRIPTOR.services_by_name["QuotaService"],
]


def add_servicers(
    server: aio.Server, cases: UseCases, hub: BalanceHub, pages: PageTokens, secret: bytes
) -> None:
    """
    Serves every contract of the room.

    `secret` is what idempotency keys' requests are remembered by.
    """
    clock = cases.room.clock
    usage = UsageServicer(cases.accounts, cases.ledger, cases.metering, pages, clock)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(usage, server)
    reservations = ReservationServicer(cases.reservations, clock)
    reservation_pb2_grpc.add_ReservationServiceServicer_to_server(reservations, server)
    ledger = LedgerServicer(cases.ledger, cases.proofs, pages, secret)
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledger, server)
    reports = ReportServicer(cases.reports, hub, pages)
    report_pb2_grpc.add_ReportServiceServicer_to_server(reports, server)
    quotas = QuotaServicer(cases.quotas, cases.standings, pages, clock)
    quota_pb2_grpc.add_QuotaServiceServicer_to_server(quotas, server)
