"""Requests of AuthService."""

import secrets
from collections.abc import Callable
from typing import Any

from finity.auth.v1 import auth_pb2
from google.protobuf.message import Message

from tests.contracts.requests.given import Given
from tests.running import PASSWORD


def _register(_: Given) -> Message:
    email = f"{secrets.token_hex(8)}@example.com"
    return auth_pb2.RegisterRequest(email=email, password=PASSWORD)


def _login(given: Given) -> Message:
    return auth_pb2.LoginRequest(email=given.somebody.email, password=PASSWORD)


def _refresh(given: Given) -> Message:
    token = given.somebody.tokens.refresh_token
    return auth_pb2.RefreshSessionRequest(refresh_token=token)


def _revoke(given: Given) -> Message:
    return auth_pb2.RevokeTokenRequest(refresh_token=given.somebody.tokens.refresh_token)


def _validate(given: Given) -> Message:
    return auth_pb2.ValidateTokenRequest(token=given.somebody.tokens.access_token)


def _set_role(given: Given) -> Message:
    return auth_pb2.SetRoleRequest(
        user_id=given.somebody.user_id, role=auth_pb2.ROLE_PRO, reason="contract"
    )


FACTORIES: dict[Any, Callable[[Given], Message]] = {
    auth_pb2.RegisterRequest: _register,
    auth_pb2.LoginRequest: _login,
    auth_pb2.RefreshSessionRequest: _refresh,
    auth_pb2.LogoutRequest: lambda _: auth_pb2.LogoutRequest(),
    auth_pb2.RevokeTokenRequest: _revoke,
    auth_pb2.ValidateTokenRequest: _validate,
    auth_pb2.GetUserRequest: lambda given: auth_pb2.GetUserRequest(user_id=given.subject),
    auth_pb2.ListUsersRequest: lambda _: auth_pb2.ListUsersRequest(page_size=3),
    auth_pb2.SetRoleRequest: _set_role,
    auth_pb2.GetSigningKeysRequest: lambda _: auth_pb2.GetSigningKeysRequest(),
    auth_pb2.ListRevocationsRequest: lambda _: auth_pb2.ListRevocationsRequest(),
}
