"""
Bed: everything that is measured, running at once on free ports over one durable PostgreSQL.

The suite as `make run` starts it, a second usage service on the other transport, the
empty services and the peer.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from suite import addresses, ports
from suite.credentials import DEVELOPER
from suite.processes import Child
from suite.rooms import Room
from suite.stack import Stack

ROOT = Path(__file__).resolve().parent.parent
NODE_PEER = ROOT / "benchmarks" / "node_peer"
START_SECONDS = 30.0
TRANSPORTS = ("native", "grpcio")
KINDS = ("bare", "gated")
# A gRPC and a Prometheus port for each empty service and the second usage, one for each peer.
_PORTS = 2 * (len(TRANSPORTS) * len(KINDS) + 1) + 4
# As many as SQLAlchemy's own default lets through (5 and 10 more), and a few to spare.
PEER_POOL = 20
_OURS = ("FINITY_", "DATABASE_URL", "REDIS_URL", "PG")


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is."""

    address: str
    metrics: str = ""
    """URL of its Prometheus text."""


@dataclass(frozen=True, slots=True)
class Bed:
    """The running servers."""

    database_url: str
    service_key: str
    auth: Place
    usage: dict[str, Place]
    """By transport."""
    empty: dict[tuple[str, str], Place]
    """By transport and kind."""
    gateway: Place
    peers: dict[int, Place]
    """Processes → the peer served by so many."""
    check: Place
    """The peer of ValidateToken."""
    node: Place | None = None
    """The peer in Node, in one process; None where its packages are not installed."""


@contextlib.contextmanager
def made(directory: Path) -> Iterator[Bed]:
    """Starts everything with its state in the directory; ends everything."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    settings = {"FINITY_TRANSPORT": "native", "FINITY_ACCESS_TOKEN_SECONDS": "3600"}
    with (
        Stack(directory, environment=kept | settings, addresses=addresses.free()) as stack,
        contextlib.ExitStack() as children,
    ):
        beside = _Beside(stack, children)
        bed = Bed(
            database_url=stack.database_url,
            service_key=stack.credentials.service_keys[DEVELOPER],
            auth=_room(stack, "auth"),
            usage={"native": _room(stack, "usage"), "grpcio": beside.usage_on_grpcio()},
            empty={(each, kind): beside.empty(each, kind) for each in TRANSPORTS for kind in KINDS},
            gateway=Place(stack.gateway_url.removeprefix("http://")),
            peers={processes: beside.peer(processes) for processes in sorted({1, cores()})},
            check=beside.check(),
            node=beside.node(),
        )
        beside.wait()
        yield bed


def _room(stack: Stack, name: str) -> Place:
    return Place(stack.address(name), stack.addresses.metrics_of(Room(name)))


class _Beside:
    """Starts what stands beside the suite, all at once."""

    def __init__(self, stack: Stack, children: contextlib.ExitStack) -> None:
        self._stack = stack
        self._children = children
        self._ports = iter(ports.free_ports(_PORTS))
        self._starting: list[tuple[Child, int]] = []

    def usage_on_grpcio(self) -> Place:
        port, metrics = next(self._ports), next(self._ports)
        room = Room("usage")
        moved = {
            "FINITY_TRANSPORT": "grpcio",
            room.port_setting: str(port),
            room.metrics_setting: str(metrics),
        }
        self._start("usage on grpcio", ["-m", room.module], port, moved)
        return _place(port, metrics)

    def empty(self, transport: str, kind: str) -> Place:
        port, metrics = next(self._ports), next(self._ports)
        place = _place(port, metrics)
        arguments = ["-m", "benchmarks.empty", transport, kind, place.address, str(metrics)]
        self._start(f"empty {transport} {kind}", arguments, port, {})
        return place

    def peer(self, processes: int) -> Place:
        port = next(self._ports)
        arguments = ["-m", "benchmarks.peer", str(port), str(processes), str(PEER_POOL)]
        self._start(f"peer in {processes}", arguments, port, {})
        return Place(f"{ports.LOOPBACK}:{port}")

    def check(self) -> Place:
        port = next(self._ports)
        jwks = f"{self._stack.gateway_url}/.well-known/jwks.json"
        arguments = ["-m", "benchmarks.peer_check", str(port), str(PEER_POOL), jwks]
        self._start("peer that checks", arguments, port, {})
        return Place(f"{ports.LOOPBACK}:{port}", f"http://{ports.LOOPBACK}:{port}/answered")

    def node(self) -> Place | None:
        program = shutil.which("node")
        if program is None or not (NODE_PEER / "node_modules" / ".prisma" / "client").exists():
            return None
        port = next(self._ports)
        command = [program, str(NODE_PEER / "server.js"), str(port), str(PEER_POOL)]
        self._run("peer in node", command, port, {})
        return Place(f"{ports.LOOPBACK}:{port}")

    def wait(self) -> None:
        """Returns once everything listens; SuiteError if something does not."""
        for child, port in self._starting:
            child.wait_until(partial(ports.answers, port), START_SECONDS)

    def _start(self, name: str, arguments: list[str], port: int, moved: dict[str, str]) -> None:
        self._run(name, [sys.executable, *arguments], port, moved)

    def _run(self, name: str, command: list[str], port: int, moved: dict[str, str]) -> None:
        child = Child(
            name,
            command,
            environment=self._stack.environment("usage") | moved,
            directory=ROOT,
        )
        self._children.callback(child.stop)
        child.start()
        self._starting.append((child, port))


def _place(port: int, metrics: int) -> Place:
    return Place(f"{ports.LOOPBACK}:{port}", f"http://{ports.LOOPBACK}:{metrics}/metrics")
