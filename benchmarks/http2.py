"""
The client's side of HTTP/2 (RFC 9113), as much as gRPC calls over plaintext need.

Every call of a connection has the same headers, but for the path: the first call adds
them to the server's HPACK table (RFC 7541 section 6.2.1), the others name them by one byte
each. The server is asked to keep no table for its answers, so that a call's trailers are
the same bytes each time it succeeds.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEAD = 9
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
# The whole address space of flow control: no answer ever waits for a WINDOW_UPDATE of ours.
WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME = 16_384
# Entries of the static table (RFC 7541 appendix A) come first.
_FIRST_DYNAMIC = 62
# A literal without indexing (section 6.2.2), its name the static table's entry 4.
_PATH = b"\x04"
_GRPC_STATUS = (b"grpc-status", bytes.fromhex("9acac8b21234da8f"))
_ZERO = (b"\x010", b"\x81\x07")


class Frame(IntEnum):
    """Types of frames."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """What SETTINGS may say."""

    HEADER_TABLE_SIZE = 1
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5


def frame(kind: Frame, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns one frame."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def settings(values: Mapping[Setting, int]) -> bytes:
    """Returns a SETTINGS frame."""
    payload = b"".join(struct.pack(">HI", *item) for item in values.items())
    return frame(Frame.SETTINGS, 0, 0, payload)


def read_settings(payload: bytes) -> dict[int, int]:
    """Returns what a SETTINGS frame says."""
    return dict(struct.iter_unpack(">HI", payload))


def window_update(stream: int, amount: int) -> bytes:
    """Returns a WINDOW_UPDATE frame."""
    return frame(Frame.WINDOW_UPDATE, 0, stream, struct.pack(">I", amount))


def hello() -> bytes:
    """Returns what a client says first."""
    own = {Setting.HEADER_TABLE_SIZE: 0, Setting.INITIAL_WINDOW_SIZE: WINDOW}
    return PREFACE + settings(own) + window_update(0, WINDOW - DEFAULT_WINDOW)


def first_headers(headers: Sequence[tuple[str, str]]) -> bytes:
    """Encodes headers and makes the server remember them."""
    return b"".join(b"\x40" + _text(name) + _text(value) for name, value in headers)


def known_headers(count: int) -> bytes:
    """Encodes the same headers once more: the oldest entry has the highest number."""
    return bytes(
        0x80 | index for index in range(_FIRST_DYNAMIC + count - 1, _FIRST_DYNAMIC - 1, -1)
    )


def other_path(known: bytes, place: int, path: str) -> bytes:
    """Encodes known headers with another path, which nobody remembers, at its place."""
    return known[:place] + _PATH + _text(path) + known[place + 1 :]


def frames(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields type, flags, stream, start and end of payload of each whole frame."""
    at, size = 0, len(data)
    while at + FRAME_HEAD <= size:
        word, flags, stream = struct.unpack_from(">IBI", data, at)
        start = at + FRAME_HEAD
        at = start + (word >> 8)
        if at > size:
            return
        yield word & 0xFF, flags, stream, start, at


def succeeded(trailers: bytes) -> bool:
    """Tells whether a header block without references says "grpc-status: 0"."""
    return any(name + zero in trailers for name in _GRPC_STATUS for zero in _ZERO)


def _text(value: str) -> bytes:
    """A string literal without Huffman coding (RFC 7541 section 5.2)."""
    raw = value.encode()
    size = len(raw)
    if size < 0x7F:
        return bytes([size]) + raw
    size -= 0x7F
    length = b"\x7f"
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return length + bytes([size]) + raw
