"""
The load generator: one thread, a few connections, as many calls in flight as there are places.

Closed loop: each answer makes room for the next call, so latencies are those of a
full house. Bodies are made before the clock starts. What an answer says is only
counted here; whether calls succeeded is the servers' word.
"""

import gc
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

READ_BYTES = 64 * 1024
# A server that says nothing for so long is taken for dead.
SILENCE_SECONDS = 20.0


class LoadError(Exception):
    """A server closed a connection, broke the protocol or fell silent."""


class Line(Protocol):
    """A connection: some places for calls, each free or waiting for its answer."""

    socket: socket.socket
    refused: int

    @property
    def waiting(self) -> int:
        """Calls in flight."""
        ...

    def fill(self, bodies: Iterator[bytes]) -> None:
        """Sends calls until every place is taken or no body is left."""
        ...

    def receive(self, data: bytes) -> Iterable[float]:
        """Takes bytes of the server; returns the latency of each call they answered."""
        ...


def drive(
    lines: Sequence[Line], bodies: Iterator[bytes], seconds: float
) -> tuple[float, list[float]]:
    """
    Calls for so long, or until no body is left, then waits for the answers still due.

    Returns the seconds from the first call to the last answer, and every call's latency.
    """
    latencies: list[float] = []
    with ExitStack() as stack:
        poll = stack.enter_context(selectors.DefaultSelector())
        stack.enter_context(_no_collections())
        for line in lines:
            stack.callback(line.socket.close)
            poll.register(line.socket, selectors.EVENT_READ, line)
        started = time.perf_counter()
        for line in lines:
            line.fill(bodies)
        while any(line.waiting for line in lines):
            ready = poll.select(SILENCE_SECONDS)
            if not ready:
                raise LoadError(f"no answer for {SILENCE_SECONDS:.0f} s")
            for key, _ in ready:
                line = key.data
                data = line.socket.recv(READ_BYTES)
                if not data:
                    raise LoadError("the server closed a connection")
                latencies.extend(line.receive(data))
                if time.perf_counter() - started < seconds:
                    line.fill(bodies)
        ended = time.perf_counter()
    return ended - started, latencies


def connect(address: str) -> socket.socket:
    """Opens a connection to host:port."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=SILENCE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keeps the garbage collector from walking the bodies while the clock runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
