"""The contracts of the room on the wire: message in, use case, message out."""

from finity.auth.v1 import account_pb2, account_pb2_grpc, auth_pb2, auth_pb2_grpc
from grpc import aio

from chassis.tokens import TokenVerifier
from services.auth.rpc.auth import AuthServicer
from services.auth.rpc.lifecycle import LifecycleServicer
from services.auth.service.accounts import AccountService
from services.auth.service.authority import Authority
from services.auth.service.lifecycle import LifecycleService
from services.auth.service.room import Room
from services.auth.service.sessions import SessionService

CONTRACTS = [
    account_pb2.DESCRIPTOR.services_by_name["AccountLifecycleService"],
    auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
]


def add_servicers(
    server: aio.Server, room: Room, verifier: TokenVerifier, authority: Authority
) -> None:
    """Puts the use cases together and serves every contract of the room."""
    accounts, sessions = AccountService(room), SessionService(room, verifier)
    auth = AuthServicer(room, accounts, sessions, authority)
    auth_pb2_grpc.add_AuthServiceServicer_to_server(auth, server)
    lifecycle = LifecycleServicer(LifecycleService(room))
    account_pb2_grpc.add_AccountLifecycleServiceServicer_to_server(lifecycle, server)
