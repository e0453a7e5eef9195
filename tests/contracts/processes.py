"""Auth and usage as processes of their own, as they run in production."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finity.auth.v1 import auth_pb2_grpc
from finity.usage.v1 import usage_pb2_grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from suite.ports import free_port
from tests import github
from tests.contracts.descriptors import ROOT
from tests.running import SECRET, SERVICE_KEY, House, bearer

START_SECONDS = 30.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Processes:
    """The running rooms: how to call them and what they weigh."""

    house: House
    channels: Mapping[str, aio.Channel]
    children: Mapping[str, "subprocess.Popen[bytes]"]
    logs: Mapping[str, Path]

    def resident_bytes(self, room: str) -> int:
        """Returns the memory a room's process holds now."""
        statm = Path(f"/proc/{self.children[room].pid}/statm").read_text()
        return int(statm.split()[1]) * _PAGE

    def alive(self, room: str) -> bool:
        return self.children[room].poll() is None


@contextlib.asynccontextmanager
async def open_processes(
    database_url: str, redis_url: str, directory: Path
) -> AsyncIterator[Processes]:
    """Starts both rooms on free ports, waits until they serve, and stops them."""
    ports = {"auth": free_port(), "usage": free_port()}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen"))),
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "FINITY_TRANSPORT": "native",
        "FINITY_LOG_LEVEL": "error",
        "FINITY_SERVICE_KEYS": json.dumps(
            {"test": [hashlib.sha256(SERVICE_KEY.encode()).hexdigest()]}
        ),
        "FINITY_SERVICE_KEY": SERVICE_KEY,
        "FINITY_SECRET": SECRET,
        "FINITY_ARGON2_MEMORY_KIB": "8",
        "FINITY_ARGON2_TIME_COST": "1",
        # Everybody is at one address here.
        "FINITY_GUESSES_PER_ADDRESS": "1000000",
        "FINITY_REGISTRATIONS_PER_ADDRESS": "1000000",
        "FINITY_DEVICE_CODES_PER_ADDRESS": "1000000",
        "FINITY_SMTP_PORT": "9",
    }
    for room, port in ports.items():
        environment[f"FINITY_{room.upper()}_PORT"] = str(port)
        environment[f"FINITY_{room.upper()}_ADDRESS"] = f"127.0.0.1:{port}"
    async with contextlib.AsyncExitStack() as stack:
        hub = await stack.enter_async_context(github.serving())
        environment["FINITY_OAUTH_PROVIDERS"] = json.dumps({"github": hub.setting})
        children, logs, channels = {}, {}, {}
        for room, port in ports.items():
            logs[room] = directory / f"{room}.log"
            output = stack.enter_context(logs[room].open("wb"))
            children[room] = subprocess.Popen(  # noqa: S603, ASYNC220 - our own module
                [sys.executable, "-m", f"services.{room}"],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            stack.callback(_end, children[room])
            channels[room] = aio.insecure_channel(f"127.0.0.1:{port}")
            stack.push_async_callback(channels[room].close)
        for channel in channels.values():
            stub = health_pb2_grpc.HealthStub(channel)
            await stub.Check(
                health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=START_SECONDS
            )
        house = House(
            auth_pb2_grpc.AuthServiceStub(channels["auth"]),
            usage_pb2_grpc.UsageServiceStub(channels["usage"]),
            channels["auth"],
            channels["usage"],
            bearer(SERVICE_KEY),
            database_url,
        )
        yield Processes(house, channels, children, logs)


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
