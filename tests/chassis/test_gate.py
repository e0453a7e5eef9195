"""chassis.gate: everything between the wire and a handler, on both transports."""

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from itertools import chain
from typing import Any
from uuid import uuid4

import grpc
import pytest
import structlog
from finity.options.v1 import options_pb2
from google.rpc import error_details_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status

from chassis.callers import Kind
from chassis.calls import DEADLINE_MARGIN, REQUEST_ID, current_call
from chassis.contract import sensitive_names
from chassis.tallies import TALLIES
from tests.chassis import probe
from tests.chassis.issuer import unsigned
from tests.chassis.probe import CONTRACT, SERVICE, Answer, Ask, Probe, passed
from tests.chassis.waiting import until
from tests.contracts.descriptors import SERVICES
from tests.factories import sooner_or_later
from tests.running import bearer, info_of, refusal_of


@pytest.fixture
async def room(transport: str) -> AsyncIterator[Probe]:
    """The probe on each transport."""
    async with probe.serve(transport=transport, default_deadline=7.0) as running:
        yield running


async def refused(call: Any) -> aio.AioRpcError:
    """Returns the error of a call that must be refused."""
    with pytest.raises(aio.AioRpcError) as error:
        await call
    return error.value


async def seen_by_handler(room: Probe, **call: Any) -> Any:
    """Makes a call and returns the Call its handler ran in."""
    seen: list[Any] = []

    async def look(request: Any, context: Any) -> Any:
        seen.append((current_call(), current_call().remaining(), request))
        return Answer()

    room.behaviour = look
    await room.call(**call)
    return seen[0]


async def test_a_request_id_is_kept(room: Probe) -> None:
    """The caller's x-request-id is the call's, on the whole way down."""
    call, _, _ = await seen_by_handler(room, method="Open", metadata=((REQUEST_ID, "abc-1/2"),))
    assert call.request_id == "abc-1/2"


@pytest.mark.parametrize("given", [None, "", "x" * 65, "two words"])
async def test_a_request_id_is_made(room: Probe, given: str | None) -> None:
    """Without a usable x-request-id each call gets a new one."""
    metadata = () if given is None else ((REQUEST_ID, given),)
    calls = [await seen_by_handler(room, method="Open", metadata=metadata) for _ in range(2)]
    ids = {call.request_id for call, _, _ in calls}
    assert len(ids) == 2
    assert all(16 <= len(request_id) <= 64 and request_id != given for request_id in ids)


async def test_a_public_method_looks_at_no_credentials(room: Probe) -> None:
    """A PUBLIC method serves anybody, whatever comes in the authorization metadata."""
    for metadata in ((), bearer("nonsense"), SERVICE):
        call, _, _ = await seen_by_handler(room, method="Open", metadata=metadata)
        assert call.caller.kind is Kind.PUBLIC


async def test_a_user_is_the_subject_of_its_call(room: Probe) -> None:
    """A user's empty subject is the user's id when the handler reads it."""
    user_id = uuid4()
    token = room.issuer.token_of(user_id, uuid4())
    call, _, request = await seen_by_handler(room, method="Own", metadata=bearer(token))
    assert call.caller.user_id == user_id
    assert request.user_id == str(user_id)


async def test_refusals_come_in_the_documented_order(room: Probe) -> None:
    """Caller, access, bytes, subject, validation: the first thing wrong is the answer."""
    user = bearer(room.issuer.token())
    wrong = Ask(text="x" * 21, user_id=str(uuid4()))
    cases: list[tuple[str, Any, Any, tuple[StatusCode, str]]] = [
        ("Own", b"\xff", (), (StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")),
        ("Manage", b"\xff", user, (StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")),
        ("Own", b"\xff", user, (StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")),
        ("Own", wrong, (), (StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")),
        (
            "Own",
            wrong,
            bearer(unsigned(room.issuer.claims(), "first")),
            (StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID"),
        ),
        ("Manage", wrong, user, (StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")),
        ("Own", wrong, user, (StatusCode.PERMISSION_DENIED, "SUBJECT_DENIED")),
        ("Own", Ask(), SERVICE, (StatusCode.INVALID_ARGUMENT, "SUBJECT_REQUIRED")),
        ("Own", wrong, SERVICE, (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")),
    ]
    for method, ask, metadata, expected in cases:
        error = await refused(room.call(method, ask, metadata=metadata))
        assert refusal_of(error) == expected


async def test_invalid_fields_are_named(room: Probe) -> None:
    """INVALID_REQUEST carries BadRequest with each field and rule, and never the value."""
    error = await refused(room.call("Open", Ask(text="secret-" * 9)))
    status: Any = rpc_status.from_call(error)
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert [(v.field, v.reason) for v in bad.field_violations] == [("text", "string.max_len")]
    assert b"secret-" not in status.SerializeToString()


@pytest.mark.parametrize("seconds", [3.0, 30.0, 300.0])
async def test_the_caller_s_deadline_is_shaved_by_a_margin(room: Probe, seconds: float) -> None:
    """A handler has less than the caller's time, however gRPC rounded that on its way."""
    for _ in range(3):
        _, remaining, _ = await seen_by_handler(room, method="Open", timeout=seconds)
        assert 0 < remaining < seconds - DEADLINE_MARGIN / 2


async def test_a_call_without_a_deadline_gets_the_default(room: Probe) -> None:
    """A caller that names no deadline gets the setting's, here seven seconds."""
    _, remaining, _ = await seen_by_handler(room, method="Open")
    assert 3.0 < remaining <= 7.0


async def test_our_refusal_arrives_before_the_caller_s_timer(room: Probe) -> None:
    """A handler that takes too long is ended with a reason, not by the caller's own timer."""
    ended = asyncio.Event()

    async def sleep(request: Any, context: Any) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def in_time() -> bool:
        ended.clear()
        return passed(await refused(room.call("Open", timeout=1.0)))

    room.behaviour = sleep
    assert await sooner_or_later(in_time, rounds=10)
    assert ended.is_set()


async def test_a_timeout_inside_is_not_the_deadline(room: Probe) -> None:
    """A TimeoutError of the handler's own is a defect, not a passed deadline."""

    async def fail(request: Any, context: Any) -> Any:
        raise TimeoutError

    room.behaviour = fail
    assert info_of(await refused(room.call("Open"))).reason == "DEFECT"


async def test_a_defect_tells_only_its_id(room: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception is INTERNAL with an error id that the log has, and no inner text."""

    async def fail(request: Any, context: Any) -> Any:
        raise RuntimeError("SELECT password_hash FROM users")

    room.behaviour = fail
    with structlog.testing.capture_logs() as lines:
        monkeypatch.setattr("chassis.answering._log", structlog.get_logger())
        error = await refused(room.call("Open"))
    assert refusal_of(error) == (StatusCode.INTERNAL, "DEFECT")
    info = info_of(error)
    assert set(info.metadata) == {"error_id"}
    sent = f"{error.details()} {error.trailing_metadata()}"
    for inner in ("SELECT", "password_hash", "RuntimeError", "Traceback"):
        assert inner not in sent
    assert [line["error_id"] for line in lines if line["event"] == "defect"] == [
        info.metadata["error_id"]
    ]


async def test_a_cancelled_call_cancels_its_handler(room: Probe) -> None:
    """A caller that hangs up ends the work it asked for."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, context: Any) -> Any:
        started.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            ended.set()
            raise

    room.behaviour = wait
    # Its deadline would cancel it as well.
    call = room.call("Open", timeout=600)
    await until(lambda: started.is_set() or call.done())
    call.cancel()
    await until(ended.is_set)
    room.behaviour = probe.echo
    assert (await room.call("Open", Ask(text="still here"))).text == "still here"


async def test_too_many_calls_are_refused(transport: str) -> None:
    """Past the bound of calls at once the answer is OVERLOADED with a delay, until one ends."""
    async with probe.serve(transport=transport, max_concurrent_calls=2) as room:
        running, go = asyncio.Semaphore(0), asyncio.Event()

        async def wait(request: Any, context: Any) -> Any:
            running.release()
            await go.wait()
            return Answer(text="done")

        room.behaviour = wait
        calls = [asyncio.ensure_future(_await(room.call("Open"))) for _ in range(2)]
        for _ in calls:
            await running.acquire()
        error = await refused(room.call("Open"))
        assert refusal_of(error) == (StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        status: Any = rpc_status.from_call(error)
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert retry.retry_delay.ToMilliseconds() > 0
        go.set()
        assert [answer.text for answer in await asyncio.gather(*calls)] == ["done", "done"]
        assert (await room.call("Open")).text == "done"


async def _await(call: Any) -> Any:
    return await call


@pytest.mark.parametrize(
    "path",
    [f"/{CONTRACT.full_name}/Absent", "/finity.other.v1.OtherService/Open", "/x", "/a/b/c"],
)
async def test_an_unknown_method_is_unimplemented(room: Probe, path: str) -> None:
    """A method nobody serves is METHOD_UNKNOWN, whatever its path looks like."""
    call: Any = room.channel.unary_unary(path)
    error = await refused(call(b"anything"))
    assert refusal_of(error) == (StatusCode.UNIMPLEMENTED, "METHOD_UNKNOWN")


async def test_a_handler_cannot_get_round_the_gate(transport: str) -> None:
    """A method that no contract describes is METHOD_UNKNOWN, however its handler was added."""

    async def answer(_: Any, __: Any) -> Any:
        raise AssertionError("nobody may come here")

    handlers: Any = {"Secret": grpc.unary_unary_rpc_method_handler(answer)}
    generic: Any = grpc.method_handlers_generic_handler("finity.beside.v1.Beside", handlers)
    async with probe.composed(transport=transport) as room:
        room.server.grpc.add_registered_method_handlers(CONTRACT.full_name, handlers)
        room.server.grpc.add_generic_rpc_handlers((generic,))
        await room.server.start()
        async with aio.insecure_channel(f"127.0.0.1:{room.server.port}") as channel:
            for path in (f"/{CONTRACT.full_name}/Secret", "/finity.beside.v1.Beside/Secret"):
                call: Any = channel.unary_unary(path)
                error = await refused(call(b""))
                assert refusal_of(error) == (StatusCode.UNIMPLEMENTED, "METHOD_UNKNOWN")


@pytest.mark.parametrize("raw", [b"\xff\xff", b"\x0a\x7fshort", b"\x12\x02\xff\xfe", b"\0"])
async def test_malformed_bytes_are_refused(room: Probe, raw: bytes) -> None:
    """Bytes that are no message are the caller's mistake, with a reason."""
    error = await refused(room.call("Open", raw))
    assert refusal_of(error) == (StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


async def test_calls_are_counted_by_method_and_code(room: Probe) -> None:
    """Each answer counts once, under its method and code."""

    tally = TALLIES.of(CONTRACT.full_name, "Open")

    def count(code: str) -> int:
        return tally.codes[StatusCode[code].value[0]]

    before = count("OK"), count("INVALID_ARGUMENT")
    await room.call("Open")
    await refused(room.call("Open", Ask(text="x" * 21)))
    # A call is counted when its handler has ended, which may be after the caller has its answer.
    expected = before[0] + 1, before[1] + 1
    await until(lambda: (count("OK"), count("INVALID_ARGUMENT")) == expected)


async def test_a_refusal_is_one_log_line(room: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused call is logged once, with request id, method, caller, code, reason and fields."""
    with structlog.testing.capture_logs() as lines:
        monkeypatch.setattr("chassis.answering._log", structlog.get_logger())
        metadata = (*SERVICE, (REQUEST_ID, "r-7"))
        user_id = str(uuid4())
        await refused(room.call("Own", Ask(text="s3cret" * 9, user_id=user_id), metadata=metadata))
    (line,) = [line for line in lines if line["event"] == "refused"]
    assert line["request_id"] == "r-7"
    assert line["method"] == f"{CONTRACT.full_name}/Own"
    assert line["caller"] == "service:test"
    assert (line["grpc_code"], line["reason"]) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert line["fields"] == ["text: string.max_len"]
    assert "s3cret" not in json.dumps(line)
    # Or an operator would read "[redacted]" there.
    assert line.keys().isdisjoint(sensitive_names(chain(*SERVICES.values())))


def test_the_probe_covers_every_kind_of_caller() -> None:
    """The tests' contract has a method for each kind of caller there is."""
    kinds = {kind for kind in options_pb2.Caller.values() if kind}
    allowed = {
        kind
        for method in CONTRACT.methods
        for kind in method.GetOptions().Extensions[options_pb2.access].allow
    }
    assert allowed == kinds


@pytest.mark.parametrize("kind", ["answered", "refused", "stream"])
async def test_a_call_leaves_nothing_to_the_garbage_collector(kind: str) -> None:
    """
    What refers to itself in a circle is found by a collector that stops everything for it.

    On the native transport, where all of a call's objects are ours or those of a library that
    makes no circles. Sixteen objects a call were a pause of 30 ms every 3,000 calls.
    """
    ask = Ask(user_id=str(uuid4()), text="a")

    async def call(running: Probe) -> None:
        if kind == "stream":
            assert [answer.text async for answer in running.watch(ask, metadata=SERVICE)] == [
                "a"
            ] * 3
            return
        with contextlib.nullcontext() if kind == "answered" else pytest.raises(aio.AioRpcError):
            await running.call("Serve", ask, metadata=() if kind == "refused" else SERVICE)

    async with probe.serve(transport="native") as running:
        for _ in range(20):
            await call(running)
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                await call(running)
            found = gc.collect()
        finally:
            gc.enable()
    assert found < 50
