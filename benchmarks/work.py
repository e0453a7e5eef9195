"""What a row of the table does to its server for a while; runs in a process of its own."""

import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Literal, Protocol

import uvloop
from argon2 import PasswordHasher
from nacl.pwhash import argon2id

from benchmarks.bodies import Bodies
from benchmarks.grpc_line import GrpcLine
from benchmarks.http_line import HttpLine
from benchmarks.load import Line, LoadError, drive
from benchmarks.pair_line import PairLine
from benchmarks.stream_line import StreamLine
from chassis.channels import open_channel
from chassis.clock import SystemClock
from chassis.tokens import TokenVerifier
from services.usage.peers import Auth

_MICROSECOND = 1e-6
# Until a storm has filled its queue.
_GATHERING_SECONDS = 1.0
_START_SECONDS = 30.0
# Looking at the clock would cost a good part of a check.
_AT_A_TIME = 100


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run saw."""

    seconds: float
    """From the first call sent to the last answer."""
    answered: int
    refused: int
    """Answers that were no success, as far as the client can tell."""
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: float, latencies: Sequence[float], refused: int) -> "Sample":
        ordered = sorted(latencies) or [0.0]
        at = [ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in (0.5, 0.99)]
        return cls(seconds, len(latencies), refused, *at)


class Work(Protocol):
    """One kind of load."""

    def run(self, seconds: float) -> Sample:
        """Does it for so long."""
        ...


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one method, or of two in turn, by our own generator."""

    protocol: Literal["grpc", "stream", "json"]
    address: str
    path: str
    headers: tuple[tuple[str, str], ...]
    bodies: Bodies
    lines: int
    """Connections."""
    places: int = 1
    """Calls in flight on each."""
    then: str = ""
    """Path of the call that follows the answer of each, over gRPC; bodies come in twos."""

    def run(self, seconds: float) -> Sample:
        bodies = self.bodies.make(seconds)
        lines = [self._line() for _ in range(self.lines)]
        elapsed, latencies = drive(lines, bodies, seconds)
        return Sample.of(elapsed, latencies, sum(line.refused for line in lines))

    def _line(self) -> Line:
        if self.protocol == "json":
            return HttpLine(self.address, self.path, self.headers)
        if self.then:
            return PairLine(self.address, self.path, self.then, self.headers, self.places)
        kind = StreamLine if self.protocol == "stream" else GrpcLine
        return kind(self.address, self.path, self.headers, self.places)


@dataclass(frozen=True, slots=True)
class H2load:
    """Empty gRPC calls by h2load, to see how light our own generator is."""

    address: str
    path: str
    lines: int
    places: int

    def run(self, seconds: float) -> Sample:
        with tempfile.TemporaryDirectory(prefix="finity-h2load-") as name:
            body, log = Path(name, "body"), Path(name, "log")
            # Not compressed, and nothing follows.
            body.write_bytes(bytes(5))
            subprocess.run(  # noqa: S603 - our own command
                [
                    *(
                        "h2load",
                        f"--clients={self.lines}",
                        f"--max-concurrent-streams={self.places}",
                    ),
                    *(f"--duration={int(seconds * 1000)}ms", f"--data={body}", f"--log-file={log}"),
                    *("--header=content-type: application/grpc", "--header=te: trailers"),
                    f"http://{self.address}{self.path}",
                ],
                check=True,
                capture_output=True,
                timeout=seconds + 30,
            )
            rows = [line.split("\t") for line in log.read_text().splitlines()]
        spans = [(int(start), int(took)) for start, _, took in rows]
        if not spans:
            raise LoadError("h2load made no call")
        elapsed = max(start + took for start, took in spans) - min(start for start, _ in spans)
        latencies = [took * _MICROSECOND for _, took in spans]
        return Sample.of(elapsed * _MICROSECOND, latencies, 0)


@dataclass(frozen=True, slots=True)
class Hashing:
    """Verifies one password on as many threads as there are cores: the ceiling of Login."""

    password: str
    hashed: str
    threads: int
    library: Literal["argon2-cffi", "libsodium"]
    """What a Python service has by default, or what ours has."""

    def run(self, seconds: float) -> Sample:
        started = time.perf_counter()
        with ThreadPoolExecutor(self.threads) as pool:
            jobs = [pool.submit(self._verify, started + seconds) for _ in range(self.threads)]
            latencies = [latency for job in jobs for latency in job.result()]
        return Sample.of(time.perf_counter() - started, latencies, 0)

    def _verify(self, until: float) -> list[float]:
        hasher, latencies = PasswordHasher(), []
        hashed, password = self.hashed.encode(), self.password.encode()
        while (started := time.perf_counter()) < until:
            if self.library == "libsodium":
                argon2id.verify(hashed, password)
            else:
                hasher.verify(hashed, password)
            latencies.append(time.perf_counter() - started)
        return latencies


@dataclass(frozen=True, slots=True)
class Stormed:
    """Calls while another load runs beside them, which is not counted."""

    calls: Calls
    storm: Calls

    def run(self, seconds: float) -> Sample:
        spawn = multiprocessing.get_context("spawn")
        begun = spawn.Event()
        process = spawn.Process(
            target=_rage, args=(self.storm, seconds + 2 * _GATHERING_SECONDS, begun)
        )
        process.start()
        try:
            # A process that still starts would be a second storm, of another kind.
            if not begun.wait(_START_SECONDS):
                process.kill()
                raise LoadError("the storm did not begin")
            time.sleep(_GATHERING_SECONDS)
            return self.calls.run(seconds)
        finally:
            process.join()


def _rage(storm: Calls, seconds: float, begun: Event) -> None:
    begun.set()
    storm.run(seconds)


@dataclass(frozen=True, slots=True)
class Verifying:
    """Checks one token again and again as every service does, in this process; one thread."""

    address: str
    """Of auth, where the keys and revocations come from."""
    service_key: str
    issuer: str
    token: str

    def run(self, seconds: float) -> Sample:
        return uvloop.run(self._run(seconds))

    async def _run(self, seconds: float) -> Sample:
        channel = open_channel(self.address, self.service_key, 10.0)
        try:
            verifier = TokenVerifier(Auth(channel), self.issuer, SystemClock())
            await verifier.verify(self.token)
            count, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                for _ in range(_AT_A_TIME):
                    await verifier.verify(self.token)
                count += _AT_A_TIME
            elapsed = time.perf_counter() - started
        finally:
            await channel.close()
        return Sample(elapsed, count, 0, elapsed / count, elapsed / count)
