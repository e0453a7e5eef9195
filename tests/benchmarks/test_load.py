"""The load generator against real servers: what it counts is what they count."""

import sys
from collections.abc import Callable, Iterator
from itertools import repeat

import pytest

from benchmarks.bed import ROOT, Place
from benchmarks.counters import handled
from benchmarks.empty import METHOD, SERVICE
from benchmarks.grpc_line import GrpcLine
from benchmarks.load import LoadError, connect, drive
from benchmarks.pair_line import PairLine
from suite import ports
from suite.processes import Child

Start = Callable[[str, str], Place]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts empty services; none is left."""
    children: list[Child] = []

    def one(transport: str, kind: str) -> Place:
        port, metrics = ports.free_ports(2)
        address = f"{ports.LOOPBACK}:{port}"
        command = [sys.executable, "-m", "benchmarks.empty", transport, kind, address, str(metrics)]
        child = Child("empty", command, directory=ROOT)
        children.append(child)
        child.start()
        child.wait_until(lambda: ports.answers(port) and ports.answers(metrics), 30)
        return Place(address, f"http://{ports.LOOPBACK}:{metrics}/metrics")

    yield one
    for child in children:
        child.stop()


@pytest.mark.parametrize("kind", ["bare", "gated"])
async def test_counts_what_the_server_counts(start: Start, transport: str, kind: str) -> None:
    place = start(transport, kind)
    path = f"/{SERVICE}/{METHOD}"
    lines = [GrpcLine(place.address, path, (("x-note", "n" * 200),), 8) for _ in range(2)]
    seconds, latencies = drive(lines, repeat(b"", 1000), 20.0)
    assert len(latencies) == 1000
    assert sum(line.refused for line in lines) == 0
    assert 0 < max(latencies) <= seconds
    assert await handled(place, METHOD) == 1000


async def test_refusals_are_seen(start: Start, transport: str) -> None:
    place = start(transport, "gated")
    line = GrpcLine(place.address, f"/{SERVICE}/{METHOD}", (), 4)
    # Field 1, a string of 5 bytes of which 1 is there.
    _, latencies = drive([line], repeat(b"\x0a\x05x", 20), 20.0)
    assert (len(latencies), line.refused) == (20, 20)
    assert await handled(place, METHOD) == 0


async def test_a_pair_is_two_calls_and_none_stays_half_done(start: Start, transport: str) -> None:
    place = start(transport, "gated")
    path = f"/{SERVICE}/{METHOD}"
    line = PairLine(place.address, path, path, (), 8)
    # Without end: the clock stops it in the middle of pairs.
    _, latencies = drive([line], repeat(b""), 0.2)
    assert (line.waiting, line.refused) == (0, 0)
    assert await handled(place, METHOD) == 2 * len(latencies) > 0


async def test_the_second_call_of_a_pair_has_its_own_path(start: Start, transport: str) -> None:
    place = start(transport, "gated")
    line = PairLine(place.address, f"/{SERVICE}/{METHOD}", f"/{SERVICE}/Nothing", (), 4)
    _, latencies = drive([line], repeat(b"", 2 * 20), 20.0)
    assert (len(latencies), line.refused) == (20, 20)
    assert await handled(place, METHOD) == 20


async def test_large_bodies_wait_for_the_servers_windows(start: Start, transport: str) -> None:
    place = start(transport, "gated")
    line = GrpcLine(place.address, f"/{SERVICE}/{METHOD}", (), 4)
    # An unknown field of 300,000 bytes, several times a window.
    body = b"\x7a" + b"\xe0\xa7\x12" + bytes(300_000)
    _, latencies = drive([line], repeat(body, 40), 20.0)
    assert (len(latencies), line.refused) == (40, 0)


def test_a_connection_that_ends_is_an_error() -> None:
    with pytest.raises(OSError, match="refused"):
        connect(f"{ports.LOOPBACK}:{ports.free_port()}")
    assert issubclass(LoadError, Exception)
