"""
Several processes of one service on one port: the kernel deals new connections out to them.

    siblings.run(main, "usage", partial(load, Settings), lambda settings: settings.processes)

The first process serves nothing: it holds the port, starts the others and ends with them.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from chassis import server
from chassis.settings import ServiceSettings, SettingsError

PROCESS = "FINITY_PROCESS"
POLL_SECONDS = 0.1
PARENT_SECONDS = 1.0
# Beyond the drain, for pools and jobs to end.
END_SECONDS = 5.0

S = TypeVar("S", bound=ServiceSettings)
Service = Callable[[], Coroutine[Any, Any, None]]


def run(service: Service, room: str, read: Callable[[], S], processes: Callable[[S], int]) -> None:
    """Runs a composition root in as many processes as its settings say; 0 is one a core."""
    try:
        settings = read()
        wanted = processes(settings) or cores()
        if settings.process:
            server.run(partial(_with_parent, service))
        elif wanted == 1:
            server.run(service)
        else:
            sys.exit(_Siblings(settings, room, wanted).run())
    except (SettingsError, server.StartupError) as error:
        sys.exit(f"{error}")


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Siblings:
    """The processes that share a port."""

    def __init__(self, settings: ServiceSettings, room: str, count: int) -> None:
        self._settings = settings
        self._room = room
        self._count = count
        self._stop = threading.Event()

    def run(self) -> int:
        """Returns the exit code once all have ended: one that ends by itself ends the others."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        with self._held() as held:
            port = held.getsockname()[1]
            children = [self._start(number, port) for number in range(1, self._count + 1)]
            while not self._stop.wait(POLL_SECONDS):
                if any(child.poll() is not None for child in children):
                    break
            # Nobody was asked to end yet: whoever has, has failed.
            failed = [child.returncode or 1 for child in children if child.poll() is not None]
            _end(children, self._settings.drain_seconds + END_SECONDS)
        return failed[0] if failed else 0

    def _held(self) -> socket.socket:
        """Takes the port for all of them, without listening; StartupError if somebody has it."""
        try:
            found = socket.getaddrinfo(
                self._settings.host, self._settings.port, type=socket.SOCK_STREAM
            )
            family, _, _, _, address = found[0]
            # Alone first: sharing with another service would be an accident.
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
                taken = probe.getsockname()
            held = socket.socket(family)
            # Connections of who served here before linger for a minute (TIME-WAIT).
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(taken)
            # Who did that on a port where nobody listens yet would share it.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError as error:
            raise server.StartupError(
                f"{self._settings.host}:{self._settings.port} is taken; set"
                f" FINITY_{self._room.upper()}_PORT to a free port."
            ) from error
        return held

    def _start(self, number: int, port: int) -> "subprocess.Popen[bytes]":
        own = {PROCESS: str(number), f"FINITY_{self._room.upper()}_PORT": str(port)}
        return subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", f"services.{self._room}"], env=os.environ | own
        )


def _end(children: "list[subprocess.Popen[bytes]]", seconds: float) -> None:
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


async def _with_parent(service: Service) -> None:
    """Drains when the process that started this one is gone: nobody else would ever end it."""
    watch = asyncio.create_task(_watch(os.getppid()))
    try:
        await service()
    finally:
        watch.cancel()


async def _watch(parent: int) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110 - the kernel tells nobody
        await asyncio.sleep(PARENT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
