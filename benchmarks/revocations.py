"""
How soon a logout is honoured by another service: `python -m benchmarks.revocations`.

Two auth services and two usage services, each usage following an auth of its own,
on one PostgreSQL and one Valkey. Somebody logs out at the first auth; the clock
stops when a usage service refuses the access token. Measured with Valkey, then
with Valkey stopped, for the usage beside the same auth and beside the other one.
"""

import asyncio
import contextlib
import os
import secrets
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from finity.auth.v1 import auth_pb2, auth_pb2_grpc
from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from grpc import StatusCode, aio

from suite import addresses, ports, state
from suite.processes import Child
from suite.rooms import ROOMS, Room
from suite.stack import Stack

ROOT = Path(__file__).resolve().parent.parent
USAGE = Room("usage")
LOGOUTS = 100
# A verifier that polled would need at most this long.
GIVE_UP_SECONDS = 30.0
PASSWORD = secrets.token_urlsafe(16)
_OURS = ("FINITY_", "DATABASE_URL", "REDIS_URL", "PG")


def main() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    settings = {"FINITY_LOG_LEVEL": "error", "FINITY_GUESSES_PER_ADDRESS": "1000000"}
    with (
        state.scratch("finity-bench-") as directory,
        Stack(
            directory, environment=kept | settings, addresses=addresses.free(), gateway=False
        ) as stack,
        _second_replicas(stack) as other_usage,
    ):
        print("seconds from a logout to its first refusal, p50 / p99 / worst")
        for title, prepare in (
            ("with Valkey", None),
            ("without Valkey", stack.children["valkey"].stop),
        ):
            if prepare:
                prepare()
            for where, address in (
                ("same auth", stack.address("usage")),
                ("other auth", other_usage),
            ):
                taken = asyncio.run(_measure(stack.address("auth"), address))
                print(f"{title:>15}, {where:<10}  {_shown(taken)}")


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


async def _measure(auth_address: str, usage_address: str) -> list[float]:
    async with (
        aio.insecure_channel(auth_address) as auth_channel,
        aio.insecure_channel(usage_address) as usage_channel,
    ):
        auth = auth_pb2_grpc.AuthServiceStub(auth_channel)
        usage = usage_pb2_grpc.UsageServiceStub(usage_channel)
        email = f"{secrets.token_hex(8)}@example.com"
        await auth.Register(auth_pb2.RegisterRequest(email=email, password=PASSWORD))
        login = auth_pb2.LoginRequest(email=email, password=PASSWORD)
        return [await _one(auth, usage, (await auth.Login(login)).tokens) for _ in range(LOGOUTS)]


async def _one(
    auth: auth_pb2_grpc.AuthServiceStub,
    usage: usage_pb2_grpc.UsageServiceStub,
    tokens: auth_pb2.SessionTokens,
) -> float:
    me = (("authorization", f"Bearer {tokens.access_token}"),)
    assert await _code(usage, me) is not StatusCode.UNAUTHENTICATED
    await auth.Logout(auth_pb2.LogoutRequest(), metadata=me)
    answered = time.perf_counter()
    while await _code(usage, me) is not StatusCode.UNAUTHENTICATED:
        assert time.perf_counter() - answered < GIVE_UP_SECONDS
        await asyncio.sleep(0.001)
    return time.perf_counter() - answered


async def _code(usage: usage_pb2_grpc.UsageServiceStub, me: tuple[tuple[str, str]]) -> StatusCode:
    try:
        await usage.GetBalance(usage_pb2.GetBalanceRequest(), metadata=me)
    except aio.AioRpcError as error:
        return error.code()
    return StatusCode.OK


def _shown(taken: list[float]) -> str:
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return f"{cuts[49]:.3f} / {cuts[98]:.3f} / {max(taken):.3f}"


if __name__ == "__main__":
    main()
