"""The gateways and the rooms every test of this folder shares."""

import asyncio
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from grpc import aio

from gateway.envoy import validation
from suite.ports import free_port
from tests.gateway.harness import IMPATIENT, MAX_BODY, ORIGIN, TIMEOUT, Gateway, Rooms, running


@pytest.fixture(scope="session")
def rooms() -> Iterator[Rooms]:
    served = Rooms()
    loop = asyncio.new_event_loop()

    async def start() -> aio.Server:
        server = aio.server()
        server.add_generic_rpc_handlers((served,))
        served.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server

    server = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield served
    asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture(scope="session")
def gateway(rooms: Rooms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    address = f"127.0.0.1:{rooms.port}"
    with running(
        tmp_path_factory.mktemp("gateway"),
        auth_address=address,
        usage_address=f"localhost:{rooms.port}",
        cors_origins=ORIGIN,
        gateway_max_body_bytes=MAX_BODY,
        gateway_timeout_seconds=TIMEOUT,
    ) as served:
        yield served


@pytest.fixture(scope="session")
def impatient(rooms: Rooms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that waits a second only, for callers and for rooms."""
    with running(
        tmp_path_factory.mktemp("impatient"),
        auth_address=f"127.0.0.1:{rooms.port}",
        gateway_timeout_seconds=IMPATIENT,
    ) as served:
        yield served


@pytest.fixture(scope="session")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway to rooms that do not answer: auth is down, usage connects and stays silent."""
    folder = tmp_path_factory.mktemp("cut_off")
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        running(
            folder,
            # One call at a time is enough to show what the next one gets.
            edit=('"max_requests": 2048', '"max_requests": 1'),
            auth_address=f"127.0.0.1:{free_port()}",
            usage_address=f"127.0.0.1:{silent.getsockname()[1]}",
            gateway_timeout_seconds=IMPATIENT,
        ) as served,
    ):
        yield served


@pytest.fixture(scope="session")
def garbled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway to rooms that break off: auth hangs up, usage speaks another protocol."""
    folder = tmp_path_factory.mktemp("garbled")
    with (
        breaking_off(b"") as auth,
        breaking_off(b"HTTP/1.1 200 OK\r\n\r\n") as usage,
        running(folder, auth_address=auth, usage_address=usage) as served,
    ):
        yield served


@contextmanager
def breaking_off(last_words: bytes) -> Iterator[str]:
    """A server that takes a request, says something else and hangs up; yields its address."""

    def serve() -> None:
        # Closing the listener ends accept with an error.
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(last_words)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.fixture
def validate(tmp_path: Path) -> Callable[[str], "subprocess.CompletedProcess[str]"]:
    """Asks Envoy whether a configuration is good."""

    def run(config: str) -> "subprocess.CompletedProcess[str]":
        path = tmp_path / "checked.json"
        path.write_text(config)
        return subprocess.run(  # noqa: S603
            validation(path), capture_output=True, text=True, timeout=60, check=False
        )

    return run
