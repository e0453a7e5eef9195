"""The contracts of the room on the wire: message in, use case, message out."""

from finity.auth.v1 import (
    account_pb2,
    account_pb2_grpc,
    admin_pb2,
    admin_pb2_grpc,
    auth_pb2,
    auth_pb2_grpc,
    device_pb2,
    device_pb2_grpc,
    email_pb2,
    email_pb2_grpc,
    mfa_pb2,
    mfa_pb2_grpc,
    oauth_pb2,
    oauth_pb2_grpc,
    password_pb2,
    password_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)
from grpc import aio

from chassis.tokens import TokenVerifier
from services.auth.providers import Providers
from services.auth.rpc.admin import AdminServicer
from services.auth.rpc.auth import AuthServicer
from services.auth.rpc.devices import DeviceServicer
from services.auth.rpc.emails import EmailServicer
from services.auth.rpc.lifecycle import LifecycleServicer
from services.auth.rpc.mfa import MfaServicer
from services.auth.rpc.oauth import OAuthServicer
from services.auth.rpc.passwords import PasswordServicer
from services.auth.rpc.session import SessionServicer
from services.auth.rpc.token import TokenServicer
from services.auth.service.accounts import AccountService
from services.auth.service.admin import AdminService
from services.auth.service.authority import Authority
from services.auth.service.devices import DeviceService
from services.auth.service.emails import EmailService
from services.auth.service.imports import ImportService
from services.auth.service.lifecycle import LifecycleService
from services.auth.service.mfa import MfaService
from services.auth.service.notices import NoticeService
from services.auth.service.oauth import OAuthService
from services.auth.service.passkeys import PasskeyService
from services.auth.service.passwords import PasswordService
from services.auth.service.proofs import ProofService
from services.auth.service.room import Room
from services.auth.service.rotation import KeyService
from services.auth.service.session_list import SessionListService
from services.auth.service.sessions import SessionService

CONTRACTS = [
    auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
    device_pb2.DESCRIPTOR.services_by_name["DeviceService"],
    password_pb2.DESCRIPTOR.services_by_name["PasswordService"],
    oauth_pb2.DESCRIPTOR.services_by_name["OAuthService"],
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
    account_pb2.DESCRIPTOR.services_by_name["AccountLifecycleService"],
    email_pb2.DESCRIPTOR.services_by_name["EmailService"],
    session_pb2.DESCRIPTOR.services_by_name["SessionService"],
    token_pb2.DESCRIPTOR.services_by_name["TokenService"],
    mfa_pb2.DESCRIPTOR.services_by_name["MfaService"],
]


def add_servicers(
    server: aio.Server,
    room: Room,
    verifier: TokenVerifier,
    authority: Authority,
    providers: Providers,
) -> None:
    """Puts the use cases together and serves every contract of the room."""
    accounts, sessions = AccountService(room), SessionService(room, verifier)
    auth = AuthServicer(room, accounts, sessions, authority)
    auth_pb2_grpc.add_AuthServiceServicer_to_server(auth, server)
    devices = DeviceServicer(DeviceService(room, sessions))
    device_pb2_grpc.add_DeviceServiceServicer_to_server(devices, server)
    passwords = PasswordServicer(room, PasswordService(room), ImportService(room))
    password_pb2_grpc.add_PasswordServiceServicer_to_server(passwords, server)
    oauth = OAuthServicer(room, OAuthService(room, accounts, sessions, providers))
    oauth_pb2_grpc.add_OAuthServiceServicer_to_server(oauth, server)
    admin = AdminServicer(room, AdminService(room, sessions))
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    lifecycle = LifecycleServicer(LifecycleService(room))
    account_pb2_grpc.add_AccountLifecycleServiceServicer_to_server(lifecycle, server)
    emails = EmailServicer(room, EmailService(room, sessions), NoticeService(room))
    email_pb2_grpc.add_EmailServiceServicer_to_server(emails, server)
    listed = SessionServicer(room, SessionListService(room))
    session_pb2_grpc.add_SessionServiceServicer_to_server(listed, server)
    tokens = TokenServicer(room, KeyService(room), authority)
    token_pb2_grpc.add_TokenServiceServicer_to_server(tokens, server)
    factors = MfaService(room)
    passkeys = PasskeyService(room, factors)
    proofs = ProofService(room, sessions, factors, passkeys)
    mfa = MfaServicer(room, factors, passkeys, proofs)
    mfa_pb2_grpc.add_MfaServiceServicer_to_server(mfa, server)
