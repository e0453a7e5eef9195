"""The house, served in the test's process: real channels, real database, a clock of the test's."""

import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from finity.auth.v1 import auth_pb2, auth_pb2_grpc
from finity.errors.v1 import errors_pb2
from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from google.rpc import error_details_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status
from pydantic import SecretStr
from redis.asyncio import Redis

from chassis import limits
from chassis.clock import Clock
from services.auth import config as auth_config
from services.auth.__main__ import composed as compose_auth
from services.usage import config as usage_config
from services.usage.__main__ import composed as compose_usage
from suite.ports import free_ports
from tests import github
from tests.owner import connect_owner, make_admin, verify_address

SERVICE_KEY = f"fsk_test_{secrets.token_urlsafe(32)}"
# Another one in each process of tests: none must count the other's failed attempts.
SECRET = secrets.token_hex(32)
PASSWORD = "correct horse battery"
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Person:
    """A registered, logged-in user."""

    user_id: str
    email: str
    tokens: auth_pb2.SessionTokens

    @property
    def metadata(self) -> Metadata:
        return bearer(self.tokens.access_token)


@dataclass(frozen=True, slots=True)
class House:
    """The running rooms with a stub for each."""

    auth: auth_pb2_grpc.AuthServiceStub
    usage: usage_pb2_grpc.UsageServiceStub
    auth_channel: aio.Channel
    usage_channel: aio.Channel
    service: Metadata
    """Metadata of an internal service."""
    database_url: str
    auth_address: str = ""
    """host:port of auth, for a gateway in front of it."""
    usage_address: str = ""
    """The same of usage."""

    async def person(
        self, *, credits: int = 0, role: int = auth_pb2.ROLE_FREE, verified: bool = True
    ) -> Person:
        """Registers and logs in somebody new, with an account of exactly `credits`."""
        email = f"{secrets.token_hex(8)}@example.com"
        request = auth_pb2.RegisterRequest(email=email, password=PASSWORD)
        user_id = (await self.auth.Register(request)).user.user_id
        async with connect_owner(self.database_url) as owner:
            if verified:
                await verify_address(owner, user_id)
            if role == auth_pb2.ROLE_ADMIN:
                await make_admin(owner, user_id)
        if role == auth_pb2.ROLE_PRO:
            await self.auth.SetRole(
                auth_pb2.SetRoleRequest(user_id=user_id, role=role, reason="test"),  # type: ignore[arg-type]
                metadata=self.service,
            )
        await self.usage.OpenAccount(
            usage_pb2.OpenAccountRequest(user_id=user_id), metadata=self.service
        )
        if credits:
            await self.usage.GrantCredits(
                usage_pb2.GrantCreditsRequest(
                    user_id=user_id, amount=credits, source="test", source_ref="start"
                ),
                metadata=self.service,
            )
        login = await self.auth.Login(auth_pb2.LoginRequest(email=email, password=PASSWORD))
        return Person(user_id, email, login.tokens)


@contextlib.asynccontextmanager
async def open_house(
    database_url: str, redis_url: str, transport: str, clock: Clock, **overrides: Any
) -> AsyncIterator[House]:
    """Serves both rooms on free ports; `overrides` are settings of either."""
    auth_port, usage_port = free_ports(2)
    shared: dict[str, Any] = {
        "database_url": database_url,
        "redis_url": redis_url,
        "transport": transport,
        "service_keys": {"test": (hashlib.sha256(SERVICE_KEY.encode()).hexdigest(),)},
        "service_key": SERVICE_KEY,
        "secret": SECRET,
        "auth_address": f"127.0.0.1:{auth_port}",
        "usage_address": f"127.0.0.1:{usage_port}",
        # Strong hashing is tested once; here it would only take time.
        "argon2_memory_kib": 8,
        "argon2_time_cost": 1,
        "signup_credits": 0,
        # A call that names no time has all that a busy machine takes.
        "default_deadline": 60.0,
        # Everybody is at one address here.
        "guesses_per_address": 1_000_000,
        "registrations_per_address": 1_000_000,
        "device_codes_per_address": 1_000_000,
        # Nobody takes mail there; a test that wants it brings a server.
        "smtp_port": 9,
        **overrides,
    }
    async with Redis.from_url(redis_url) as redis:
        async for key in redis.scan_iter(f"{limits.PREFIX}*"):
            await redis.delete(key)
    async with contextlib.AsyncExitStack() as stack:
        hub = await stack.enter_async_context(github.serving())
        shared = {"oauth_providers": {"github": hub.setting}, **shared}
        auth_settings = auth_config.Settings(FINITY_AUTH_PORT=auth_port, **shared)
        auth = await stack.enter_async_context(compose_auth(auth_settings, clock))
        usage_settings = usage_config.Settings(FINITY_USAGE_PORT=usage_port, **shared)
        usage = await stack.enter_async_context(compose_usage(usage_settings, clock))
        for server in (auth, usage):
            await server.start()
            stack.push_async_callback(server.stop, None)
        auth_channel = aio.insecure_channel(f"127.0.0.1:{auth_port}")
        usage_channel = aio.insecure_channel(f"127.0.0.1:{usage_port}")
        stack.push_async_callback(auth_channel.close)
        stack.push_async_callback(usage_channel.close)
        yield House(
            auth_pb2_grpc.AuthServiceStub(auth_channel),
            usage_pb2_grpc.UsageServiceStub(usage_channel),
            auth_channel,
            usage_channel,
            bearer(SERVICE_KEY),
            database_url,
            f"127.0.0.1:{auth_port}",
            f"127.0.0.1:{usage_port}",
        )


def derive(purpose: str) -> bytes:
    """Keys as the running rooms derive them, to read what they send to people."""
    return auth_config.Settings(secret=SecretStr(SECRET)).derive(purpose)


def bearer(token: str) -> Metadata:
    """Returns the metadata that presents a token or key."""
    return (("authorization", f"Bearer {token}"),)


def refusal_of(error: aio.AioRpcError) -> tuple[StatusCode, str]:
    """Returns code and ErrorInfo.reason of a refused call."""
    return error.code(), info_of(error).reason


def info_of(error: aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """Returns the ErrorInfo every refusal must carry."""
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} came without details: {error.details()}"
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info
    raise AssertionError(f"{error.code()} came without ErrorInfo")


def shared_reasons() -> set[str]:
    """Returns every reason of finity.errors.v1 but the unspecified one."""
    return {
        value.name.removeprefix("ERROR_REASON_")
        for value in errors_pb2.ErrorReason.DESCRIPTOR.values
        if value.number
    }
