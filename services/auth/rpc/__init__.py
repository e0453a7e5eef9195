"""The contracts of the room on the wire: message in, use case, message out."""

from finity.auth.v1 import auth_pb2, auth_pb2_grpc, email_pb2, email_pb2_grpc
from grpc import aio

from chassis.tokens import TokenVerifier
from services.auth.rpc.auth import AuthServicer
from services.auth.rpc.emails import EmailServicer
from services.auth.service.accounts import AccountService
from services.auth.service.authority import Authority
from services.auth.service.emails import EmailService
from services.auth.service.room import Room
from services.auth.service.sessions import SessionService

CONTRACTS = [
    auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
    email_pb2.DESCRIPTOR.services_by_name["EmailService"],
]


def add_servicers(
    server: aio.Server, room: Room, verifier: TokenVerifier, authority: Authority
) -> None:
    """Puts the use cases together and serves every contract of the room."""
    accounts, sessions = AccountService(room), SessionService(room, verifier)
    auth = AuthServicer(room, accounts, sessions, authority)
    auth_pb2_grpc.add_AuthServiceServicer_to_server(auth, server)
    emails = EmailServicer(room, EmailService(room, sessions))
    email_pb2_grpc.add_EmailServiceServicer_to_server(emails, server)
