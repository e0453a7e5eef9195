"""A connection that POSTs JSON over HTTP/1.1 with keep-alive: one call at a time."""

import time
from collections.abc import Iterator, Sequence

from benchmarks.load import LoadError, connect

_END = b"\r\n\r\n"


class HttpLine:
    """One call at a time over one connection, as HTTP/1.1 clients do."""

    def __init__(self, address: str, path: str, headers: Sequence[tuple[str, str]]) -> None:
        lines = [f"POST {path} HTTP/1.1", f"host: {address}", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in headers]
        self._head = "\r\n".join([*lines, "content-length: "]).encode()
        self._sent: float | None = None
        self._data = b""
        self.refused = 0
        self.socket = connect(address)

    @property
    def waiting(self) -> int:
        return self._sent is not None

    def fill(self, bodies: Iterator[bytes]) -> None:
        body = next(bodies, None) if self._sent is None else None
        if body is not None:
            self._sent = time.perf_counter()
            self.socket.sendall(b"%b%d%b%b" % (self._head, len(body), _END, body))

    def receive(self, data: bytes) -> list[float]:
        self._data += data
        head, end, body = self._data.partition(_END)
        if not end or not _complete(head.lower(), body):
            return []
        if self._sent is None:
            raise LoadError("the server answered without being asked")
        latency = time.perf_counter() - self._sent
        self._sent, self._data = None, b""
        self.refused += not head.startswith(b"HTTP/1.1 200")
        return [latency]


def _complete(head: bytes, body: bytes) -> bool:
    _, found, length = head.partition(b"content-length:")
    if found:
        return len(body) >= int(length.split(b"\r\n", 1)[0])
    return body.endswith(b"0" + _END)
