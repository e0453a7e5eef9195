"""The contracts of the room on the wire: message in, use case, message out."""

from finity.auth.v1 import auth_pb2, auth_pb2_grpc, mfa_pb2, mfa_pb2_grpc
from grpc import aio

from chassis.tokens import TokenVerifier
from services.auth.rpc.auth import AuthServicer
from services.auth.rpc.mfa import MfaServicer
from services.auth.service.accounts import AccountService
from services.auth.service.authority import Authority
from services.auth.service.mfa import MfaService
from services.auth.service.passkeys import PasskeyService
from services.auth.service.proofs import ProofService
from services.auth.service.room import Room
from services.auth.service.sessions import SessionService

CONTRACTS = [
    auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
    mfa_pb2.DESCRIPTOR.services_by_name["MfaService"],
]


def add_servicers(
    server: aio.Server, room: Room, verifier: TokenVerifier, authority: Authority
) -> None:
    """Puts the use cases together and serves every contract of the room."""
    accounts, sessions = AccountService(room), SessionService(room, verifier)
    auth = AuthServicer(room, accounts, sessions, authority)
    auth_pb2_grpc.add_AuthServiceServicer_to_server(auth, server)
    factors = MfaService(room)
    passkeys = PasskeyService(room, factors)
    proofs = ProofService(room, sessions, factors, passkeys)
    mfa = MfaServicer(room, factors, passkeys, proofs)
    mfa_pb2_grpc.add_MfaServiceServicer_to_server(mfa, server)
