"""
How soon a revocation is honoured by another service: `python -m benchmarks.revocations`.

Two auth services and two usage services, each usage following an auth of its own,
on one PostgreSQL and one Valkey. At the first auth somebody logs out, is banned, gets
another role or resets a password; the clock starts with the answer and stops when a usage
service refuses the access token. Measured with Valkey, then with Valkey stopped, for the
usage beside the same auth and beside the other one.
"""

import asyncio
import contextlib
import os
import random
import secrets
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

import asyncpg
from finity.auth.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    auth_pb2,
    auth_pb2_grpc,
    email_pb2,
    email_pb2_grpc,
)
from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from google.rpc import error_details_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status
from pydantic import SecretStr

from benchmarks.report import Target
from chassis.dsn import parse_dsn
from services.auth.config import Settings
from services.auth.domain import one_time
from suite import addresses, credentials, ports, state
from suite.processes import Child
from suite.rooms import ROOMS
from suite.stack import Stack

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 40
# A verifier that polled would need at most this long.
GIVE_UP_SECONDS = 30.0
# At a random moment of auth's poll: rounds that follow each other would all begin right after one.
PAUSE_SECONDS = 1.0
# Seconds the slowest may take, with Valkey and without.
TARGETS = {"with": 1.0, "without": 5.0}
PASSWORD = secrets.token_urlsafe(16)
_OURS = ("FINITY_", "DATABASE_URL", "REDIS_URL", "PG")
_COLUMNS = ("what ends the token", "Valkey", "usage beside", "p50", "p99", "max")
Metadata: TypeAlias = tuple[tuple[str, str], ...]


def main() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    settings = {
        "FINITY_LOG_LEVEL": "error",
        "FINITY_GUESSES_PER_ADDRESS": "1000000",
        "FINITY_REGISTRATIONS_PER_ADDRESS": "1000000",
    }
    with (
        state.scratch("finity-bench-") as directory,
        Stack(
            directory, environment=kept | settings, addresses=addresses.free(), gateway=False
        ) as stack,
        _second_replicas(stack) as other_usage,
    ):
        usages = {"the same auth": stack.address("usage"), "the other auth": other_usage}
        rows = asyncio.run(_measure(stack, usages, "with"))
        stack.children["valkey"].stop()
        rows += asyncio.run(_measure(stack, usages, "without"))
    print(f"seconds, {ROUNDS} of each\n")
    print("| " + " | ".join(_COLUMNS) + " |")
    print("|---|---|---|" + "---:|" * (len(_COLUMNS) - 3))
    for row in rows:
        print("| " + " | ".join(row.cells()) + " |")
    print()
    for valkey in TARGETS:
        print(_target(valkey, rows))


@dataclass(frozen=True, slots=True)
class Row:
    """How long one way took to reach one usage service."""

    way: str
    valkey: str
    where: str
    taken: Sequence[float]

    def cells(self) -> tuple[str, ...]:
        """Returns the row's text, column by column."""
        cuts = statistics.quantiles(self.taken, n=100, method="inclusive")
        seconds = (cuts[49], cuts[98], max(self.taken))
        return (self.way, self.valkey, self.where, *(f"{each:.3f}" for each in seconds))


@dataclass(frozen=True, slots=True)
class Person:
    """A registered, logged-in user."""

    user_id: str
    email: str
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Issuer:
    """The auth where tokens end, and what it takes to end them."""

    channel: aio.Channel
    service: Metadata
    database: "asyncpg.Pool[asyncpg.Record]"
    mail_key: bytes

    async def person(self) -> Person:
        """Registers and logs in somebody new."""
        email = f"{secrets.token_hex(8)}@example.com"
        auth = auth_pb2_grpc.AuthServiceStub(self.channel)
        await auth.Register(auth_pb2.RegisterRequest(email=email, password=PASSWORD))
        login = await auth.Login(auth_pb2.LoginRequest(email=email, password=PASSWORD))
        return Person(login.user.user_id, email, _bearer(login.tokens.access_token))

    async def log_out(self, person: Person) -> None:
        auth = auth_pb2_grpc.AuthServiceStub(self.channel)
        await auth.Logout(auth_pb2.LogoutRequest(), metadata=person.metadata)

    async def ban(self, person: Person) -> None:
        request = admin_pb2.BanUserRequest(user_id=person.user_id, reason="benchmark")
        admin = admin_pb2_grpc.AdminServiceStub(self.channel)
        await admin.BanUser(request, metadata=self.service)

    async def change_role(self, person: Person) -> None:
        request = auth_pb2.SetRoleRequest(
            user_id=person.user_id, role=auth_pb2.ROLE_PRO, reason="benchmark"
        )
        auth = auth_pb2_grpc.AuthServiceStub(self.channel)
        await auth.SetRole(request, metadata=self.service)

    async def reset_password(self, person: Person) -> None:
        """Follows the link of the mail, whose secret is derived from its row."""
        email = email_pb2_grpc.EmailServiceStub(self.channel)
        await email.RequestPasswordReset(email_pb2.RequestPasswordResetRequest(email=person.email))
        row_id = await self.database.fetchval(
            "SELECT id FROM reset_requests WHERE user_id = $1", UUID(person.user_id)
        )
        secret = one_time.secret_of(self.mail_key, row_id)
        await email.ResetPassword(
            email_pb2.ResetPasswordRequest(secret=secret, new_password=secrets.token_urlsafe(16))
        )

    def ways(self) -> Mapping[str, Callable[[Person], Awaitable[None]]]:
        return {
            "logout": self.log_out,
            "ban": self.ban,
            "role change": self.change_role,
            "password reset": self.reset_password,
        }


@contextlib.contextmanager
def _second_replicas(stack: Stack) -> Iterator[str]:
    """Starts an auth and a usage that follows it; yields the usage's address."""
    taken = dict(zip(ROOMS, ports.free_ports(len(ROOMS)), strict=True))
    moved = {room.port_setting: str(port) for room, port in taken.items()}
    moved |= {room.address_setting: f"{ports.LOOPBACK}:{port}" for room, port in taken.items()}
    moved |= {room.metrics_setting: "0" for room in ROOMS}
    with contextlib.ExitStack() as children:
        for room, port in taken.items():
            child = Child(
                f"second {room.name}",
                [sys.executable, "-m", room.module],
                environment=stack.environment(room.name) | moved,
                directory=ROOT,
            )
            children.callback(child.stop)
            child.start()
            child.wait_until(partial(ports.answers, port), GIVE_UP_SECONDS)
        yield next(
            f"{ports.LOOPBACK}:{port}" for room, port in taken.items() if room.name == "usage"
        )


async def _measure(stack: Stack, usages: Mapping[str, str], valkey: str) -> list[Row]:
    """Measures each way, the ways beside each other."""
    told = stack.environment(credentials.SUITE)
    async with contextlib.AsyncExitStack() as opened:
        issuer = Issuer(
            await opened.enter_async_context(aio.insecure_channel(stack.address("auth"))),
            _bearer(told["FINITY_SERVICE_KEY"]),
            await opened.enter_async_context(
                asyncpg.create_pool(parse_dsn(stack.database_url).url, min_size=1, max_size=2)
            ),
            Settings(secret=SecretStr(told["FINITY_SECRET"])).derive(one_time.PURPOSE),
        )
        stubs = [
            usage_pb2_grpc.UsageServiceStub(
                await opened.enter_async_context(aio.insecure_channel(address))
            )
            for address in usages.values()
        ]
        ways = issuer.ways()
        measured = await asyncio.gather(*(_repeat(issuer, end, stubs) for end in ways.values()))
    return [
        Row(way, valkey, where, taken)
        for way, rounds in zip(ways, measured, strict=True)
        for where, taken in zip(usages, zip(*rounds, strict=True), strict=True)
    ]


async def _repeat(
    issuer: Issuer,
    end: Callable[[Person], Awaitable[None]],
    usages: Sequence[usage_pb2_grpc.UsageServiceStub],
) -> list[list[float]]:
    """Returns what each round took, a usage service after the other."""
    found = []
    for _ in range(ROUNDS):
        person = await issuer.person()
        for usage in usages:
            assert not await _is_revoked(usage, person)
        await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))  # noqa: S311 - no secret
        await end(person)
        answered = time.perf_counter()
        found.append(
            await asyncio.gather(*(_until_refused(usage, person, answered) for usage in usages))
        )
    return found


async def _until_refused(
    usage: usage_pb2_grpc.UsageServiceStub, person: Person, answered: float
) -> float:
    while not await _is_revoked(usage, person):
        assert time.perf_counter() - answered < GIVE_UP_SECONDS
        await asyncio.sleep(0.002)
    return time.perf_counter() - answered


async def _is_revoked(usage: usage_pb2_grpc.UsageServiceStub, person: Person) -> bool:
    """Tells whether the token is refused as revoked; any other answer is one that honours it."""
    try:
        await usage.GetBalance(usage_pb2.GetBalanceRequest(), metadata=person.metadata)
    except aio.AioRpcError as error:
        if error.code() is not StatusCode.UNAUTHENTICATED:
            return False
        status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
        assert status is not None
        assert any(detail.Unpack(info) for detail in status.details)
        assert info.reason == "TOKEN_REVOKED", info.reason
        return True
    return False


def _target(valkey: str, rows: Sequence[Row]) -> Target:
    slowest = max(max(row.taken) for row in rows if row.valkey == valkey)
    text = f"every revocation honoured within {TARGETS[valkey]:g} s {valkey} Valkey"
    return Target(text, f"{slowest:.3f} s", slowest <= TARGETS[valkey])


def _bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


if __name__ == "__main__":
    main()
