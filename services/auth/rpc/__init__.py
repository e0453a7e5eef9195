"""The contracts of the room on the wire: message in, use case, message out."""

from finity.auth.v1 import (
    auth_pb2,
    auth_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)
from grpc import aio

from chassis.tokens import TokenVerifier
from services.auth.rpc.auth import AuthServicer
from services.auth.rpc.session import SessionServicer
from services.auth.rpc.token import TokenServicer
from services.auth.service.accounts import AccountService
from services.auth.service.authority import Authority
from services.auth.service.room import Room
from services.auth.service.rotation import KeyService
from services.auth.service.session_list import SessionListService
from services.auth.service.sessions import SessionService

CONTRACTS = [
    auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
    session_pb2.DESCRIPTOR.services_by_name["SessionService"],
    token_pb2.DESCRIPTOR.services_by_name["TokenService"],
]


def add_servicers(
    server: aio.Server, room: Room, verifier: TokenVerifier, authority: Authority
) -> None:
    """Puts the use cases together and serves every contract of the room."""
    accounts, sessions = AccountService(room), SessionService(room, verifier)
    auth = AuthServicer(room, accounts, sessions, authority)
    auth_pb2_grpc.add_AuthServiceServicer_to_server(auth, server)
    listed = SessionServicer(room, SessionListService(room))
    session_pb2_grpc.add_SessionServiceServicer_to_server(listed, server)
    tokens = TokenServicer(room, KeyService(room), authority)
    token_pb2_grpc.add_TokenServiceServicer_to_server(tokens, server)
