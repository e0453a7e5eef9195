"""What several contracts of the room say: roles, users, tokens, and how the caller comes."""

from datetime import datetime
from typing import Any

from finity.auth.v1 import auth_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from chassis.calls import current_call
from chassis.times import to_timestamp
from services.auth.domain.sessions import Acr, Means
from services.auth.domain.users import Role, User
from services.auth.service.sessions import Tokens

TO_ROLE = {
    Role.FREE: auth_pb2.ROLE_FREE,
    Role.PRO: auth_pb2.ROLE_PRO,
    Role.ADMIN: auth_pb2.ROLE_ADMIN,
}
FROM_ROLE = {number: role for role, number in TO_ROLE.items()}
Context = aio.ServicerContext[Any, Any]


def means(*amr: str, acr: Acr = Acr.AAL1, device: str = "") -> Means:
    """Returns how the call being answered signs somebody in."""
    return Means(amr, acr, device, current_call().address())


def to_user(user: User) -> auth_pb2.User:
    return auth_pb2.User(
        user_id=str(user.id),
        email=user.email,
        role=TO_ROLE[user.role],
        create_time=to_timestamp(user.created_at),
        last_login_time=to_timestamp(user.last_login) if user.last_login else None,
        email_verified=user.email_verified_at is not None,
        delete_time=_timestamp(user.deletion_requested_at),
        purge_time=_timestamp(user.erasure_due_at),
        mfa_enabled=user.mfa_enabled_at is not None,
    )


def _timestamp(time: datetime | None) -> Timestamp | None:
    return to_timestamp(time) if time else None


def to_tokens(tokens: Tokens) -> auth_pb2.SessionTokens:
    return auth_pb2.SessionTokens(
        session_id=str(tokens.session.id),
        access_token=tokens.access_token,
        access_token_expire_time=to_timestamp(tokens.access_token_expires_at),
        refresh_token=tokens.refresh_token,
        session_expire_time=to_timestamp(tokens.session.expires_at),
    )
