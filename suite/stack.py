"""Stack: the stores, the migrations, every room and the gateway, started as one."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from chassis import migrate
from suite import admin, credentials, envoy, readiness, state
from suite.addresses import Addresses, from_environment, reachable
from suite.database import MIGRATIONS
from suite.ports import LOOPBACK
from suite.processes import Child, Output
from suite.rooms import ROOMS, Room
from suite.state import ROOT
from suite.stores import Step, Stores
from suite.supervisor import Supervisor, Tier

ROOM_SECONDS = 30.0
GATEWAY_SECONDS = 30.0
# Drains faster than the supervisor's patience ends.
_DEFAULTS = {"FINITY_DRAIN_SECONDS": "4", "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def silently(_: str) -> Iterator[None]:
    """The Step of tests and benchmarks."""
    yield


class Stack:
    """
    The whole suite over one state folder, locked while it runs:

        with Stack(directory, addresses=free()) as stack:
            channel = aio.insecure_channel(stack.address("usage"))
    """

    def __init__(
        self,
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        addresses: Addresses | None = None,
        durable: bool = True,
        gateway: bool = True,
        step: Step = silently,
    ) -> None:
        """`environment` (default: this process') may hold DATABASE_URL and any other setting."""
        self._base = dict(os.environ if environment is None else environment)
        admin.require_development(self._base)
        self.directory = state.prepare(directory)
        self.credentials: credentials.Credentials  # known once the suite holds its folder
        self.addresses = addresses or from_environment(self._base)
        self._with_gateway = gateway
        self.administers = True
        """Whether this checkout's account is an administrator; see admin.ensure."""
        self._step = step
        self._supervisor = Supervisor(self.directory)
        self.stores = Stores(self.directory, self._base, durable=durable)
        self._lock = contextlib.ExitStack()
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        self._lock.enter_context(state.locked(self.directory))
        try:
            # Under the lock: two first starts must not each make their own.
            self.credentials = credentials.load(self.directory)
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops everything within 10 s, the gateway first."""
        self._supervisor.stop()
        self.stores.stop()
        self._lock.close()

    def watch(self) -> None:
        """Returns never; SuiteError when a process ends by itself."""
        self._supervisor.watch()

    def forward(self, output: Output) -> None:
        """From now on the lines of the rooms, the stores and the gateway go to `output`."""
        self._supervisor.forward(output)

    def address(self, name: str) -> str:
        """host:port of a room's gRPC server."""
        return self.addresses.of(Room(name))

    @property
    def database_url(self) -> str:
        return self.stores.database_url

    @property
    def redis_url(self) -> str:
        return self.stores.redis_url

    @property
    def gateway_url(self) -> str:
        return self.addresses.gateway_url

    def start_room(self, room: Room) -> None:
        """Starts a room, again if it was stopped, and waits until it serves."""
        if room.name in self.children:
            self._supervisor.release(self.children[room.name])
        self._launch_room(room)
        self._await_room(room)

    def stop_room(self, room: Room) -> None:
        """Stops a room as a deployment would: it drains first."""
        child = self.children[room.name]
        self._supervisor.release(child)
        child.stop()

    def environment(self, caller: str) -> dict[str, str]:
        """What a process of the suite is told, that calls the others as `caller`."""
        fixed = self.credentials.environment(caller, self._base) | self.addresses.environment()
        fixed |= self.stores.environment()
        search = [str(ROOT), str(ROOT / "gen"), self._base.get("PYTHONPATH", "")]
        fixed["PYTHONPATH"] = os.pathsep.join(filter(None, search))
        return _DEFAULTS | self._base | fixed

    def _start(self) -> None:
        left = self._supervisor.end_leftovers()
        if left:
            with self._step(f"ended what a killed run had left: {', '.join(left)}"):
                pass
        self.addresses.require_free()
        self.stores.start(self._step, self._adopt_store)
        self._supervisor.facts = {"database_url": self.database_url, "redis_url": self.redis_url}
        with self._step("migrations"):
            asyncio.run(migrate.apply(self.database_url, MIGRATIONS, lambda _: None))
        for room in ROOMS:
            self._launch_room(room)
        for room in ROOMS:
            with self._step(f"{room.name} on {self.addresses.of(room)}"):
                self._await_room(room)
        if self._with_gateway:
            with self._step(f"gateway on {self.gateway_url}"):
                self._start_gateway()
        with self._step("development administrator"):
            made = admin.ensure(self.address("auth"), self.credentials)
            self.administers = made != "plain"

    def _adopt_store(self, child: Child | None, port: int) -> None:
        if child:
            self.children[child.name] = child
            self._supervisor.adopt(Tier.STORES, child, f"{LOOPBACK}:{port}")

    def _launch_room(self, room: Room) -> None:
        child = Child(
            room.name,
            [sys.executable, "-m", room.module],
            environment=self.environment(room.name),
            directory=ROOT,
        )
        self._launch(Tier.ROOMS, child, self.addresses.of(room))

    def _await_room(self, room: Room) -> None:
        child, address = self.children[room.name], self.addresses.of(room)
        child.wait_until(lambda: readiness.is_serving(child.pid, address), ROOM_SECONDS)

    def _start_gateway(self) -> None:
        child = envoy.child(self.directory, self.environment(credentials.SUITE))
        self._launch(Tier.GATEWAY, child, self.gateway_url)
        host, port = reachable(self.addresses.gateway_host), self.addresses.gateway_port
        child.wait_until(lambda: readiness.is_healthy(child.pid, host, port), GATEWAY_SECONDS)

    def _launch(self, tier: Tier, child: Child, address: str) -> None:
        child.start()
        self.children[child.name] = child
        self._supervisor.adopt(tier, child, address)
