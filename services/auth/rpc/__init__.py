"""The contracts of the room on the wire: message in, use case, message out."""

from finity.auth.v1 import admin_pb2, admin_pb2_grpc, auth_pb2, auth_pb2_grpc
from grpc import aio

from chassis.tokens import TokenVerifier
from services.auth.rpc.admin import AdminServicer
from services.auth.rpc.auth import AuthServicer
from services.auth.service.accounts import AccountService
from services.auth.service.admin import AdminService
from services.auth.service.authority import Authority
from services.auth.service.room import Room
from services.auth.service.sessions import SessionService

CONTRACTS = [
    auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
]


def add_servicers(
    server: aio.Server, room: Room, verifier: TokenVerifier, authority: Authority
) -> None:
    """Puts the use cases together and serves every contract of the room."""
    accounts, sessions = AccountService(room), SessionService(room, verifier)
    auth = AuthServicer(room, accounts, sessions, authority)
    auth_pb2_grpc.add_AuthServiceServicer_to_server(auth, server)
    admin = AdminServicer(room, AdminService(room, sessions))
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
