"""chassis.native: its shorter way answers a unary call as the library's own server does."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pygrpc_native
import pygrpc_native.aio
import pytest
from grpc import StatusCode, aio
from pygrpc_native import EVENT_CALL, EVENT_CANCEL

from chassis import native

MOST = 100
METADATA = (("last", "2"),)
SAID = [
    (b"echo", (StatusCode.OK, "", b"echo")),
    (b"nothing", (StatusCode.OK, "", b"")),
    (b"told", (StatusCode.OK, "", b"me")),
    (b"metadata", (StatusCode.OK, "", b"first 1 last 2")),
    (b"code", (StatusCode.NOT_FOUND, "gone", b"last 2")),
    (b"abort", (StatusCode.ABORTED, "no", b"last 2")),
    (b"raise", (StatusCode.UNKNOWN, f"Unexpected {ValueError}: of the handler", b"")),
    (
        b"number",
        (StatusCode.UNKNOWN, "Unexpected <class 'TypeError'>: Expected bytes, got int", b""),
    ),
    (b"cancel", (StatusCode.CANCELLED, "Cancelled", b"")),
    (
        b"x" * (MOST + 1),
        (
            StatusCode.RESOURCE_EXHAUSTED,
            f"SERVER: Received message larger than max ({MOST + 1} vs. {MOST})",
            b"",
        ),
    ),
]


@dataclass
class Handler:
    """Does what its request says, and remembers what became of the call."""

    kind: type = object
    """Of the contexts it was given."""
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    told_so: bool = False

    async def answer(self, raw: bytes, context: "aio.ServicerContext[Any, Any]") -> Any:
        self.kind = type(context)
        context.add_done_callback(self.end)  # type: ignore[arg-type]
        match raw:
            case b"nothing":
                return None
            case b"told":
                return str(dict(context.invocation_metadata() or ())["who"]).encode()
            case b"metadata":
                await context.send_initial_metadata((("first", "1"),))
                context.set_trailing_metadata(aio.Metadata(*METADATA))
            case b"code":
                context.set_trailing_metadata(METADATA)
                context.set_code(StatusCode.NOT_FOUND)
                context.set_details("gone")
            case b"abort":
                await context.abort(StatusCode.ABORTED, "no", METADATA)
            case b"raise":
                raise ValueError("of the handler")
            case b"number":
                return 5
            case b"cancel":
                raise asyncio.CancelledError
            case b"wait":
                await self.wait(context)
        return raw

    async def wait(self, context: "aio.ServicerContext[Any, Any]") -> None:
        self.waiting.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.told_so = context.cancelled()
            self.left.set()

    def end(self, _: "aio.ServicerContext[Any, Any]") -> None:
        self.done.set()


@dataclass
class Running:
    """A server on one of the two, and what calls it."""

    server: aio.Server
    handler: Handler
    module: str
    """Where its contexts are from."""
    call: "aio.UnaryUnaryMultiCallable[bytes, bytes]"


@pytest.fixture(params=[native.Server, pygrpc_native.aio.Server], ids=["ours", "the library's"])
async def running(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    make: Callable[..., aio.Server] = request.param
    server, handler = make(options=[("grpc.max_receive_message_length", MOST)]), Handler()
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Do": grpc.unary_unary_rpc_method_handler(handler.answer)
    }
    server.add_registered_method_handlers("t.T", methods)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield Running(server, handler, request.param.__module__, channel.unary_unary("/t.T/Do"))
    await server.stop(None)


async def said(call: "aio.UnaryUnaryCall[bytes, bytes]", sent: bytes) -> tuple[Any, str, bytes]:
    """Code, details, and the body with what metadata of the server came along."""
    code, details = await call.code(), await call.details()
    metadata = [*await call.initial_metadata(), *await call.trailing_metadata()]
    ours = " ".join(f"{key} {value!s}" for key, value in metadata if key in ("first", "last"))
    body = b"" if code is not StatusCode.OK else await call
    return code, details, ours.encode() if sent in (b"metadata", b"code", b"abort") else body


@pytest.mark.parametrize(("sent", "expected"), SAID, ids=[sent[:9].decode() for sent, _ in SAID])
async def test_it_answers_as_the_library(
    running: Running, sent: bytes, expected: tuple[StatusCode, str, bytes]
) -> None:
    """Codes, details, metadata, limits and callbacks are the same on either."""
    code, details, body = await said(running.call(sent, metadata=(("who", "me"),)), sent)
    assert (code, details, body) == expected
    if len(sent) <= MOST:
        await asyncio.wait_for(running.handler.done.wait(), 10)
        # Not of the server behind it, which answers whatever the native one does not know.
        assert running.handler.kind.__module__ == running.module


async def test_a_handler_learns_that_its_caller_left(running: Running) -> None:
    """It is cancelled, and the context says so."""
    call = running.call(b"wait")
    await asyncio.wait_for(running.handler.waiting.wait(), 10)
    call.cancel()
    await asyncio.wait_for(running.handler.left.wait(), 10)
    await asyncio.wait_for(running.handler.done.wait(), 10)
    assert running.handler.told_so


async def test_a_call_that_was_given_up_before_it_began_leaves_nothing(running: Running) -> None:
    """Its caller may leave while the loop is busy with others; the library keeps it for good."""
    server: Any = running.server
    details = ((), "ipv4:127.0.0.1:1", None)
    server._on_events(
        [(EVENT_CALL, 10**6, 0, b"echo", None, details), (EVENT_CANCEL, 10**6, 0, None, None, None)]
    )
    await asyncio.sleep(0.01)
    ours = running.module == native.__name__
    assert len(server._calls) == (0 if ours else 1)
    # No thread waits for the end of what it did not hand over.
    assert not ours or server._idle.acquire(blocking=False)
    assert running.handler.kind is object
    assert await said(running.call(b"echo"), b"echo") == (StatusCode.OK, "", b"echo")


async def test_a_stop_ends_what_is_under_way(running: Running) -> None:
    """Without grace a call is cut off, and its handler cancelled."""
    call = running.call(b"wait")
    await asyncio.wait_for(running.handler.waiting.wait(), 10)
    await running.server.stop(None)
    await asyncio.wait_for(running.handler.left.wait(), 10)
    assert not running.handler.told_so
    with pytest.raises(aio.AioRpcError) as ended:
        await asyncio.wait_for(call, 10)
    assert ended.value.code() is StatusCode.UNAVAILABLE


async def test_many_calls_at_once_are_all_answered(running: Running) -> None:
    """However many come while the loop is busy with others, and again after a silence."""
    for _ in range(3):
        answers = await asyncio.wait_for(
            asyncio.gather(*(said(running.call(b"echo"), b"echo") for _ in range(500))), 30
        )
        assert set(answers) == {(StatusCode.OK, "", b"echo")}


async def test_a_batch_that_fails_is_not_the_last(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with some calls, the server goes on to take others."""
    take = pygrpc_native.aio.Server._on_events
    failed = asyncio.Event()

    def fail_once(self: pygrpc_native.aio.Server, events: list[Any]) -> None:
        if not failed.is_set():
            failed.set()
            raise ValueError("of the transport")
        take(self, events)

    monkeypatch.setattr(pygrpc_native.aio.Server, "_on_events", fail_once)
    lost = running.call(b"echo", timeout=30)
    await asyncio.wait_for(failed.wait(), 10)
    assert await said(running.call(b"echo", timeout=10), b"echo") == (StatusCode.OK, "", b"echo")
    lost.cancel()


def test_a_loop_that_is_closed_leaves_no_open_port() -> None:
    """Nor a thread, where it was not stopped before and has calls that nobody will answer."""

    async def start() -> tuple[aio.Server, int]:
        server = native.Server()
        server.add_registered_method_handlers(
            "t.T", {"Do": grpc.unary_unary_rpc_method_handler(Handler().answer)}
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    before = set(threading.enumerate())
    loop = asyncio.new_event_loop()
    server, port = loop.run_until_complete(start())
    (waiting,) = {t for t in threading.enumerate() if t not in before}
    handed_over = threading.Event()
    loop.call_soon_threadsafe = lambda *_: handed_over.set()  # type: ignore[method-assign, assignment]
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        do: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/t.T/Do")
        call = do.future(b"echo", timeout=30)
        assert handed_over.wait(10)
        loop.close()
        waiting.join(10)
        assert not waiting.is_alive()
        assert call.code() is StatusCode.UNAVAILABLE
    del server


def test_it_is_written_for_this_version() -> None:
    """It takes the place of what is not public: whoever moves the pin compares (decision 30)."""
    assert pygrpc_native.__version__ == "0.5.0"
