"""A connection with one stream that sends numbered batches: IngestUsage, as its senders use it."""

import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from benchmarks import http2
from benchmarks.grpc_line import GrpcLine
from benchmarks.http2 import END_HEADERS, END_STREAM, Frame
from benchmarks.load import LoadError

_STREAM = 1
_HEAD = 5


class StreamLine(GrpcLine):
    """Up to `places` batches that are not acknowledged; a body is the batch's events."""

    _ends = False

    def __init__(
        self, address: str, path: str, metadata: Sequence[tuple[str, str]], places: int
    ) -> None:
        super().__init__(address, path, metadata, places)
        self._sequence = 0
        self._due: deque[float] = deque()
        self._answer = b""

    @property
    def waiting(self) -> int:
        return len(self._due)

    def fill(self, bodies: Iterator[bytes]) -> None:
        out: list[bytes] = []
        now = time.perf_counter()
        for body in islice(bodies, self._places - len(self._due)):
            if not self._sequence:
                out.append(http2.frame(Frame.HEADERS, END_HEADERS, _STREAM, self._first))
                self._credit[_STREAM] = self._initial
            self._sequence += 1
            # Field 1 is the sequence; the events follow as they are.
            message = b"\x08" + _varint(self._sequence) + body
            self._queue.append((_STREAM, memoryview(struct.pack(">BI", 0, len(message)) + message)))
            self._due.append(now)
        out.append(self._pump())
        if any(out):
            self.socket.sendall(b"".join(out))

    def receive(self, data: bytes) -> list[float]:
        data = self._rest + data if self._rest else data
        now = time.perf_counter()
        latencies: list[float] = []
        end = 0
        for kind, flags, stream, start, end in http2.frames(data):
            if kind == Frame.DATA:
                latencies += [now - self._due.popleft() for _ in range(self._acks(data[start:end]))]
            elif kind == Frame.HEADERS and flags & END_STREAM:
                raise LoadError("the server ended a stream")
            elif kind != Frame.HEADERS:
                self._control(kind, flags, stream, data[start:end])
        self._rest = data[end:]
        return latencies

    def _acks(self, data: bytes) -> int:
        """Returns how many answers are whole now."""
        self._answer += data
        count = 0
        while len(self._answer) >= _HEAD:
            size = _HEAD + int(struct.unpack_from(">I", self._answer, 1)[0])
            if len(self._answer) < size:
                break
            self._answer = self._answer[size:]
            count += 1
        return count


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
