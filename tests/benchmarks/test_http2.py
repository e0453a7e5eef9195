"""Frames and header blocks, byte by byte."""

import pytest

from benchmarks import http2
from benchmarks.http2 import Frame, Setting


def test_frames_come_back_as_they_were_sent_and_a_half_one_waits() -> None:
    data = http2.frame(Frame.DATA, http2.END_STREAM, 7, b"hello") + http2.window_update(0, 5)
    whole = [(kind, flags, stream, data[a:b]) for kind, flags, stream, a, b in http2.frames(data)]
    assert whole == [
        (Frame.DATA, http2.END_STREAM, 7, b"hello"),
        (Frame.WINDOW_UPDATE, 0, 0, b"\0\0\0\5"),
    ]
    assert len(list(http2.frames(data[:-1]))) == 1
    assert list(http2.frames(b"\0")) == []


def test_settings_come_back() -> None:
    said = {Setting.INITIAL_WINDOW_SIZE: 1 << 20, Setting.MAX_FRAME_SIZE: 16_384}
    assert http2.read_settings(http2.settings(said)[http2.FRAME_HEAD :]) == said


def test_headers_are_literals_first_and_indexes_of_the_dynamic_table_later() -> None:
    assert http2.first_headers([("te", "x")]) == b"\x40\x02te\x01x"
    # The last one added is entry 62.
    assert http2.known_headers(3) == bytes([0x80 | 64, 0x80 | 63, 0x80 | 62])


def test_another_path_stands_among_the_known_headers_and_is_not_remembered() -> None:
    known = http2.known_headers(3)
    assert http2.other_path(known, 1, "/a") == known[:1] + b"\x04\x02/a" + known[2:]


@pytest.mark.parametrize(("length", "encoded"), [(126, "7e"), (127, "7f00"), (400, "7f9102")])
def test_lengths_of_long_values(length: int, encoded: str) -> None:
    block = http2.first_headers([("", "v" * length)])
    assert block[2 : 2 + len(encoded) // 2].hex() == encoded


@pytest.mark.parametrize(
    ("block", "good"),
    [
        (b"\x40\x0bgrpc-status\x010", True),
        (bytes.fromhex("4088") + bytes.fromhex("9acac8b21234da8f") + b"\x010", True),
        (bytes.fromhex("4088") + bytes.fromhex("9acac8b21234da8f") + b"\x81\x07", True),
        (b"\x40\x0bgrpc-status\x017", False),
        (b"", False),
    ],
)
def test_trailers_tell_success(block: bytes, good: bool) -> None:
    assert http2.succeeded(block) is good
