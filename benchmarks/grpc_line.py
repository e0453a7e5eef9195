"""A connection that makes gRPC calls of one method: bodies are requests in their protobuf form."""

import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from benchmarks import http2
from benchmarks.http2 import END_HEADERS, END_STREAM, Frame, Setting
from benchmarks.load import LoadError, connect

# Where among the headers the path is.
PATH_PLACE = 2


class GrpcLine:
    """Up to `places` calls at once over one HTTP/2 connection."""

    _ends = True
    """Whether a message is the last one of its stream."""

    def __init__(
        self, address: str, path: str, metadata: Sequence[tuple[str, str]], places: int
    ) -> None:
        headers = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata,
        )
        self.refused = 0
        self._first = http2.first_headers(headers)
        self._known = http2.known_headers(len(headers))
        self._places = places
        self._stream = 1
        self._sent: dict[int, float] = {}
        self._rest = b""
        self._good = b""
        # How much the server lets us send: on the connection, and at the start of each stream.
        self._window = http2.DEFAULT_WINDOW
        self._initial = http2.DEFAULT_WINDOW
        self._frame = http2.DEFAULT_FRAME
        self._queue: deque[tuple[int, memoryview]] = deque()
        self._credit: dict[int, int] = {}
        self.socket = connect(address)
        self.socket.sendall(http2.hello())

    @property
    def waiting(self) -> int:
        return len(self._sent)

    def fill(self, bodies: Iterator[bytes]) -> None:
        now = time.perf_counter()
        free = self._places - len(self._sent)
        out = [self._open(body, now, self._known) for body in islice(bodies, free)]
        if out:
            self.socket.sendall(b"".join(out))

    def receive(self, data: bytes) -> list[float]:
        data = self._rest + data if self._rest else data
        now = time.perf_counter()
        latencies: list[float] = []
        end = 0
        for kind, flags, stream, start, end in http2.frames(data):
            if kind == Frame.HEADERS:
                if flags & END_STREAM:
                    latencies += self._ended(stream, now)
                    self._judge(data[start:end])
            elif kind != Frame.DATA:
                self._control(kind, flags, stream, data[start:end])
        self._rest = data[end:]
        return latencies

    def _ended(self, stream: int, now: float) -> tuple[float, ...]:
        """Returns the latency of what this answer completes."""
        return (now - self._sent.pop(stream),)

    def _open(self, body: bytes, since: float, known: bytes) -> bytes:
        """Returns a call on the next stream; `known` are its headers once there were some."""
        stream = self._stream
        self._stream += 2
        self._sent[stream] = since
        headers = http2.frame(
            Frame.HEADERS, END_HEADERS, stream, known if stream > 1 else self._first
        )
        message = struct.pack(">BI", 0, len(body)) + body
        size = len(message)
        if size <= min(self._window, self._initial, self._frame) and not self._queue:
            self._window -= size
            return headers + http2.frame(Frame.DATA, END_STREAM, stream, message)
        self._queue.append((stream, memoryview(message)))
        self._credit[stream] = self._initial
        return headers + self._pump()

    def _pump(self) -> bytes:
        """Returns as much of the queue as the server's windows let through."""
        out = []
        while self._queue:
            stream, message = self._queue[0]
            size = min(len(message), self._window, self._credit[stream], self._frame)
            if size <= 0:
                break
            self._window -= size
            self._credit[stream] -= size
            last = size == len(message)
            flags = END_STREAM if last and self._ends else 0
            out.append(http2.frame(Frame.DATA, flags, stream, bytes(message[:size])))
            if last:
                self._queue.popleft()
                if self._ends:
                    del self._credit[stream]
            else:
                self._queue[0] = (stream, message[size:])
        return b"".join(out)

    def _judge(self, trailers: bytes) -> None:
        if trailers == self._good:
            return
        if http2.succeeded(trailers):
            self._good = trailers
        else:
            self.refused += 1

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == Frame.WINDOW_UPDATE:
            self._widen(stream, struct.unpack(">I", payload)[0])
        elif kind == Frame.SETTINGS and not flags & http2.ACK:
            self._settle(http2.read_settings(payload))
        elif kind == Frame.PING and not flags & http2.ACK:
            self.socket.sendall(http2.frame(Frame.PING, http2.ACK, 0, payload))
        elif kind == Frame.RST_STREAM and stream in self._sent:
            raise LoadError("the server reset a call")
        elif kind in (Frame.GOAWAY, Frame.CONTINUATION):
            raise LoadError(f"the server sent {Frame(kind).name}")

    def _settle(self, said: dict[int, int]) -> None:
        initial = said.get(Setting.INITIAL_WINDOW_SIZE, self._initial)
        for stream in self._credit:
            self._credit[stream] += initial - self._initial
        self._initial = initial
        self._frame = said.get(Setting.MAX_FRAME_SIZE, self._frame)
        self._places = min(self._places, said.get(Setting.MAX_CONCURRENT_STREAMS, self._places))
        self.socket.sendall(http2.frame(Frame.SETTINGS, http2.ACK, 0, b"") + self._pump())

    def _widen(self, stream: int, amount: int) -> None:
        if stream == 0:
            self._window += amount
        elif stream in self._credit:
            self._credit[stream] += amount
        if self._queue:
            self.socket.sendall(self._pump())
