"""`python -m chassis.health` as a container's health check uses it."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from grpc import aio
from grpc_health.v1 import health as servicers
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis import health
from suite.ports import free_port


@contextlib.asynccontextmanager
async def served(status: int) -> AsyncIterator[int]:
    """A server that says of itself what the test wants; yields its port."""
    server = aio.server()
    servicer = servicers.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", status)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def check(address: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a container does."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "chassis.health", address],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


async def test_a_serving_server_is_healthy() -> None:
    """The command ends with 0 and says nothing."""
    async with served(health_pb2.HealthCheckResponse.SERVING) as port:
        ended = await check(f"127.0.0.1:{port}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


async def test_a_draining_server_is_not() -> None:
    """NOT_SERVING is one sentence and 1."""
    async with served(health_pb2.HealthCheckResponse.NOT_SERVING) as port:
        ended = await check(f"127.0.0.1:{port}")
    assert ended.returncode == 1
    assert ended.stderr == f"Nothing serves on 127.0.0.1:{port}.\n"


async def test_nobody_is_not() -> None:
    """A port without a server is answered at once, without a traceback."""
    address = f"127.0.0.1:{free_port()}"
    ended = await check(address)
    assert ended.returncode == 1
    assert ended.stderr == f"Nothing serves on {address}.\n"


async def test_without_an_address_any_room_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container one room runs, on its usual port."""
    ports = {"auth": free_port(), "usage": free_port()}
    monkeypatch.setattr(health, "ROOM_PORTS", ports)
    with pytest.raises(SystemExit, match="Nothing serves on"):
        await asyncio.to_thread(health.main, [])
    async with served(health_pb2.HealthCheckResponse.SERVING) as port:
        ports["usage"] = port
        await asyncio.to_thread(health.main, [])
