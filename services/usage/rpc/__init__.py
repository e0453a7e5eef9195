"""The contracts of the room on the wire: message in, use case, message out."""

from finity.usage.v1 import ledger_pb2, ledger_pb2_grpc, usage_pb2, usage_pb2_grpc
from grpc import aio

from chassis.pages import PageTokens
from services.usage.rpc.ledger import LedgerServicer
from services.usage.rpc.usage import UsageServicer
from services.usage.service.accounts import AccountService
from services.usage.service.ledger import LedgerService
from services.usage.service.metering import MeteringService
from services.usage.service.proofs import ProofService
from services.usage.service.room import Room

CONTRACTS = [
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
    ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"],
]


def add_servicers(
    server: aio.Server, room: Room, metering: MeteringService, pages: PageTokens, secret: bytes
) -> None:
    """
    Puts the use cases together and serves every contract of the room.

    `secret` is what idempotency keys' requests are remembered by.
    """
    accounts = AccountService(room)
    ledger = LedgerService(room, accounts)
    usage = UsageServicer(accounts, ledger, metering, pages, room.clock)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(usage, server)
    ledgers = LedgerServicer(ledger, ProofService(room), pages, secret)
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledgers, server)
