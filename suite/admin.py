"""The development administrator: made through the public API when the suite first runs."""

import asyncio
from collections.abc import Mapping

import grpc
from finity.auth.v1 import auth_pb2, auth_pb2_grpc
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
        if user is None:
            user = await _register(auth, credentials)
        return await _promote(auth, credentials, user)


async def _promote(
    auth: auth_pb2_grpc.AuthServiceStub, credentials: Credentials, user: auth_pb2.User
) -> str:
    request = auth_pb2.SetRoleRequest(
        user_id=user.user_id,
        role=auth_pb2.ROLE_ADMIN,
        reason="The development administrator of this checkout.",
    )
    service = (("authorization", f"Bearer {credentials.service_keys[SUITE]}"),)
    try:
        await auth.SetRole(request, metadata=service, timeout=_SECONDS)
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


async def _register(auth: auth_pb2_grpc.AuthServiceStub, credentials: Credentials) -> auth_pb2.User:
    request = auth_pb2.RegisterRequest(
        email=credentials.admin_email, password=credentials.admin_password
    )
    return (await auth.Register(request, timeout=_SECONDS)).user
