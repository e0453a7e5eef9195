"""The development administrator: made through the public API when the suite first runs."""

import asyncio
from collections.abc import Mapping

import grpc
from argon2 import PasswordHasher
from finity.auth.v1 import auth_pb2, auth_pb2_grpc, password_pb2, password_pb2_grpc
from grpc import aio

from suite.credentials import SUITE, Credentials
from suite.errors import SuiteError

_SECONDS = 10.0
_CHANNEL = [("grpc.enable_http_proxy", 0)]


def require_development(environment: Mapping[str, str]) -> None:
    """Raises SuiteError in production, where this administrator has no place."""
    if environment.get("FINITY_ENV") == "production":
        raise SuiteError(
            "FINITY_ENV=production is not for this command, which makes a development"
            " administrator: unset it, or start the services one by one."
        )


def ensure(address: str, credentials: Credentials) -> str:
    """
    Makes the administrator unless it exists; returns "made" or "kept". SuiteError if refused.

    "plain" if the database has an administrator of somebody else's, another checkout's perhaps:
    the suite makes the first one only, and this account is an ordinary one until they promote it.
    """
    try:
        return asyncio.run(_ensure(address, credentials))
    except grpc.RpcError as error:
        details = error.details() if isinstance(error, aio.AioRpcError) else str(error)
        raise SuiteError(
            f"The development administrator {credentials.admin_email} could not be made: {details}"
        ) from error


async def _ensure(address: str, credentials: Credentials) -> str:
    async with aio.insecure_channel(address, options=_CHANNEL) as channel:
        auth = auth_pb2_grpc.AuthServiceStub(channel)
        user = await _login(auth, credentials)
        if user is not None and user.role == auth_pb2.ROLE_ADMIN:
            return "kept"
        metadata = (("authorization", f"Bearer {credentials.service_keys[SUITE]}"),)
        user_id = user.user_id if user else await _make(channel, credentials, metadata)
        return await _promote(auth, user_id, metadata)


async def _promote(
    auth: auth_pb2_grpc.AuthServiceStub, user_id: str, metadata: tuple[tuple[str, str], ...]
) -> str:
    request = auth_pb2.SetRoleRequest(
        user_id=user_id,
        role=auth_pb2.ROLE_ADMIN,
        reason="The development administrator of this checkout.",
    )
    try:
        await auth.SetRole(request, metadata=metadata, timeout=_SECONDS)
    except aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
            return "plain"
        raise
    return "made"


async def _login(
    auth: auth_pb2_grpc.AuthServiceStub, credentials: Credentials
) -> auth_pb2.User | None:
    """Returns the user; None if there is none, or none with this password."""
    request = auth_pb2.LoginRequest(
        email=credentials.admin_email, password=credentials.admin_password
    )
    try:
        return (await auth.Login(request, timeout=_SECONDS)).user
    except aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return None
        raise


async def _make(
    channel: aio.Channel, credentials: Credentials, metadata: tuple[tuple[str, str], ...]
) -> str:
    """Makes the account and returns its id; imported, as nobody reads mail at its address."""
    passwords = password_pb2_grpc.PasswordServiceStub(channel)
    user = password_pb2.ImportedUser(
        email=credentials.admin_email,
        email_verified=True,
        # As auth makes its own.
        password_hash=PasswordHasher(5, 7_168, 1).hash(credentials.admin_password),
    )
    request = password_pb2.ImportUsersRequest(users=[user])
    answer = await passwords.ImportUsers(request, metadata=metadata, timeout=_SECONDS)
    if not answer.created:
        raise SuiteError(f"The account {credentials.admin_email} is there with another password.")
    return answer.results[0].user_id
