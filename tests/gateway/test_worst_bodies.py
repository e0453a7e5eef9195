"""Bodies made to keep the script busy: each is answered, and so is who asks meanwhile."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import GatewaySettings
from gateway.errors import GatewayReason
from tests.gateway.harness import Gateway, Rooms, running
from tests.gateway.test_errors import JSON, expect

# The default, for that is what a frozen gateway would have let in.
LIMIT = GatewaySettings().gateway_max_body_bytes
# Far more than any of these takes, so that a slow machine passes and a freeze does not.
SECONDS = 10
REASON = GatewayReason
EMAIL = b'{"email":%b}'


def filled(start: bytes, piece: bytes, end: bytes = b"") -> bytes:
    """Repeats the piece until the body is as large as the gateway takes."""
    return start + piece * ((LIMIT - len(start) - len(end)) // len(piece)) + end


def keys(count: int) -> bytes:
    return b"{" + b",".join(b'"%x":0' % number for number in range(count)) + b"}"


LONG = b"k" * 520_000
BODIES = {
    "long key above many elements": (
        EMAIL % (b'{"%b":[%b0]}' % (LONG, b"0," * 260_000)),
        REASON.INVALID_JSON,
    ),
    "long names above many elements": (
        filled(b'{"email":{"' + b"k" * 256 + b'":' + b"[" * 29, b"0,", b"0" + b"]" * 29 + b"}}"),
        REASON.INVALID_VALUE,
    ),
    "long field": (b'{"%b":[%b0]}' % (LONG, b"0," * 260_000), REASON.UNKNOWN_FIELD),
    "unknown field after many elements": (
        filled(b'{"email":[', b"0,", b'0],"nope":1}'),
        REASON.UNKNOWN_FIELD,
    ),
    "elements of a scalar": (filled(b'{"email":[', b"0,", b"0]}"), REASON.INVALID_VALUE),
    "many exponents": (filled(b'{"email":[', b"1.0e1,", b"0]}"), REASON.INVALID_VALUE),
    "many empty objects": (filled(b'{"email":[', b"{},", b"0]}"), REASON.INVALID_VALUE),
    "deep": (EMAIL % (b'{"a":' * 100_000 + b"0" + b"}" * 100_000), REASON.INVALID_JSON),
    "brackets": (filled(b"", b"["), REASON.INVALID_JSON),
    "brackets below a leaf": (filled(b'{"email":', b"["), REASON.INVALID_JSON),
    "small keys": (EMAIL % keys(100_000), REASON.INVALID_VALUE),
    "small unknown keys": (keys(100_000), REASON.UNKNOWN_FIELD),
    "the same field again": (filled(b"{", b'"email":"",', b'"nope":1}'), REASON.UNKNOWN_FIELD),
    "spaces": (filled(b"{", b" ", b"x}"), REASON.INVALID_JSON),
    "digits": (filled(b'{"email":', b"1", b"x}"), REASON.INVALID_JSON),
    "open string of escapes": (filled(b'{"email":"', rb"\\"), REASON.INVALID_JSON),
}
TAKEN = {
    "escapes": filled(b'{"email":"', rb"\\", b'"}'),
    "escapes by number": filled(b'{"email":"', rb"\u0041", b'"}'),
    "one string": filled(b'{"email":"', b"x", b'"}'),
    "the same field to the end": filled(b"{", b'"email":"",', b'"email":""}'),
}


@pytest.fixture(scope="module")
def wide(rooms: Rooms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with one worker and the default limit on bodies."""
    address = f"127.0.0.1:{rooms.port}"
    with running(tmp_path_factory.mktemp("wide"), auth_address=address) as served:
        yield served


@pytest.fixture
def others(wide: Gateway) -> Iterator[None]:
    """Somebody else asks for /healthz all the time, and always has an answer."""
    done = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        while True:
            statuses.append(0)  # stays if there is no answer
            statuses[-1] = wide.call("GET", "/healthz", seconds=SECONDS).status
            if done.wait(0.001):
                return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    yield
    done.set()
    thread.join(SECONDS + 5)
    assert set(statuses) == {200}


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_and_holds_up_nobody(wide: Gateway, name: str) -> None:
    body, reason = BODIES[name]
    assert len(body) <= LIMIT
    expect(wide.call("POST", "/v1/users", body, JSON, seconds=SECONDS), reason)


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("name", TAKEN)
def test_a_large_good_body_passes_and_holds_up_nobody(wide: Gateway, name: str) -> None:
    answer = wide.call("POST", "/v1/users", TAKEN[name], JSON, seconds=SECONDS)
    assert answer.status == 200, answer.body


def test_names_have_a_limit_everywhere(wide: Gateway) -> None:
    for length, reason in ((256, REASON.INVALID_VALUE), (257, REASON.INVALID_JSON)):
        expect(wide.call("POST", "/v1/users", {"email": {"k" * length: 0}}), reason)


def test_an_error_of_the_script_itself_is_a_defect(rooms: Rooms, tmp_path: Path) -> None:
    edit = ("local MAX_KEY = 256", "local MAX_KEY = nil")
    with running(tmp_path, edit=edit, auth_address=f"127.0.0.1:{rooms.port}") as broken:
        expect(broken.call("POST", "/v1/users", {"email": "a"}), REASON.DEFECT)
        assert broken.call("GET", "/healthz").status == 200
