"""A connection that makes pairs of gRPC calls: ReserveCredits, then CommitReservation."""

import time
from collections.abc import Iterator, Sequence
from itertools import islice

from benchmarks import http2
from benchmarks.grpc_line import PATH_PLACE, GrpcLine


class PairLine(GrpcLine):
    """
    Up to `places` pairs at once; bodies come in twos.

    The second call of a pair is sent when the first is answered, even when no new pair
    is wanted any more: nothing stays half done.
    """

    def __init__(
        self,
        address: str,
        path: str,
        then: str,
        metadata: Sequence[tuple[str, str]],
        places: int,
    ) -> None:
        """`then` is the path of each second call."""
        super().__init__(address, path, metadata, places)
        self._then = http2.other_path(self._known, PATH_PLACE, then)
        self._second: dict[int, bytes] = {}
        self._due: list[tuple[bytes, float]] = []

    def fill(self, bodies: Iterator[bytes]) -> None:
        out: list[bytes] = []
        now = time.perf_counter()
        for first, second in islice(zip(bodies, bodies, strict=True), self._places - self.waiting):
            self._second[self._stream] = second
            out.append(self._open(first, now, self._known))
        if out:
            self.socket.sendall(b"".join(out))

    def receive(self, data: bytes) -> list[float]:
        latencies = super().receive(data)
        if self._due:
            self.socket.sendall(
                b"".join(self._open(body, since, self._then) for body, since in self._due)
            )
            self._due.clear()
        return latencies

    def _ended(self, stream: int, now: float) -> tuple[float, ...]:
        second = self._second.pop(stream, None)
        if second is None:
            return super()._ended(stream, now)
        self._due.append((second, self._sent.pop(stream)))
        return ()
