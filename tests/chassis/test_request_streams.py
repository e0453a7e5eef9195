"""Streams of requests through the gate, on both transports."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from grpc import StatusCode, aio

from chassis.refusals import Conflict
from chassis.revocations import Revocations
from chassis.tallies import TALLIES
from tests.chassis import probe
from tests.chassis.probe import CONTRACT, SERVICE, Answer, Ask, Probe, passed
from tests.chassis.waiting import SECONDS, until
from tests.factories import sooner_or_later
from tests.running import bearer, refusal_of

BOTH = pytest.mark.parametrize("method", ["Collect", "Exchange"])
MISSING = (StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")


@pytest.fixture
async def room(transport: str) -> AsyncIterator[Probe]:
    """The probe on each transport; a unary call would have half a second."""
    async with probe.serve(collect, transport=transport, default_deadline=0.5) as running:
        running.stream = answer_each
        yield running


async def collect(requests: Any, _: Any) -> Any:
    """Answers all texts at once."""
    return Answer(text=",".join([request.text async for request in requests]))


async def answer_each(requests: Any, _: Any) -> AsyncGenerator[Any, None]:
    """Answers each text as it comes."""
    async for request in requests:
        yield Answer(text=request.text)


async def asks(*asked: Any) -> AsyncIterator[Any]:
    for ask in asked:
        yield ask


def named(text: str) -> Any:
    return Ask(text=text, user_id="u")


async def answers(call: Any) -> list[str]:
    """Returns what a stream of requests is answered with, whatever its kind."""
    if hasattr(call, "read"):
        return [answer.text async for answer in call]
    return [(await call).text]


async def refusal(call: Any) -> tuple[StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as error:
        await answers(call)
    return refusal_of(error.value)


def handled(method: str, code: StatusCode) -> int:
    return TALLIES.of(CONTRACT.full_name, method).codes[code.value[0]]


async def test_every_request_reaches_the_handler(room: Probe) -> None:
    """Requests come in order, answers go out in order, and a call is counted once."""
    before = handled("Exchange", StatusCode.OK)
    letters = [named(letter) for letter in "abc"]
    assert await answers(room.send("Collect", asks(*letters), metadata=SERVICE)) == ["a,b,c"]
    assert await answers(room.send("Exchange", asks(*letters), metadata=SERVICE)) == ["a", "b", "c"]
    assert await answers(room.send("Exchange", asks(), metadata=SERVICE)) == []
    await until(lambda: handled("Exchange", StatusCode.OK) == before + 2)


async def test_requests_and_answers_take_turns(room: Probe) -> None:
    """An answer is there before the next request is sent."""
    stream = room.send("Exchange", metadata=SERVICE)
    for text in "ab":
        await stream.write(named(text))
        assert (await stream.read()).text == text
    await stream.done_writing()
    assert await stream.read() is aio.EOF


@BOTH
async def test_a_stranger_is_refused_before_a_message_is_read(room: Probe, method: str) -> None:
    """Credentials come first: nothing has to be sent for the refusal."""
    never = asyncio.Event()

    async def silence() -> AsyncIterator[Any]:
        await never.wait()
        yield named("x")

    call = room.send(method, silence(), timeout=2 * SECONDS)
    assert await asyncio.wait_for(refusal(call), SECONDS) == MISSING


@BOTH
async def test_each_request_is_looked_at(room: Probe, method: str) -> None:
    """Bytes, subject and field rules of every message, the second one as the first."""

    async def second(ask: Any, **call: Any) -> tuple[StatusCode, str]:
        first = call.pop("first", named("a"))
        return await refusal(room.send(method, asks(first, ask), **{"metadata": SERVICE, **call}))

    user = {"first": Ask(text="a"), "metadata": bearer(room.issuer.token())}
    denied = (StatusCode.PERMISSION_DENIED, "SUBJECT_DENIED")
    assert await second(Ask(user_id=str(uuid4())), **user) == denied
    assert await second(Ask(text="x")) == (StatusCode.INVALID_ARGUMENT, "SUBJECT_REQUIRED")
    assert await second(named("x" * 21)) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert await second(b"\xff\xff") == (StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


async def test_what_came_before_a_bad_request_is_answered(room: Probe) -> None:
    """The answers to good requests arrive, then the refusal of the bad one."""
    stream = room.send("Exchange", metadata=SERVICE)
    await stream.write(named("a"))
    await stream.write(b"\xff\xff")
    assert (await stream.read()).text == "a"
    with pytest.raises(aio.AioRpcError) as error:
        await stream.read()
    assert refusal_of(error.value) == (StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


@BOTH
async def test_a_handler_refuses_and_fails_as_in_a_call(room: Probe, method: str) -> None:
    """A refusal is the stream's status, anything else INTERNAL with an id."""
    raised: Exception = Conflict()

    async def breaks(requests: Any, _: Any) -> Any:
        raise raised

    async def breaks_later(requests: Any, _: Any) -> AsyncGenerator[Any, None]:
        async for _ in requests:
            raise raised
        yield Answer()

    room.behaviour, room.stream = breaks, breaks_later
    call = room.send(method, asks(named("a")), metadata=SERVICE)
    assert await refusal(call) == (StatusCode.ABORTED, "CONFLICT")
    raised = ZeroDivisionError()
    call = room.send(method, asks(named("a")), metadata=SERVICE)
    assert await refusal(call) == (StatusCode.INTERNAL, "DEFECT")


async def test_a_stream_has_its_caller_s_deadline_alone(room: Probe) -> None:
    """The default deadline of unary calls is not a stream's; its caller's own is."""

    async def in_time() -> bool:
        short = room.send("Exchange", metadata=SERVICE, timeout=0.4)
        with pytest.raises(aio.AioRpcError) as error:
            await short.read()
        return passed(error.value)

    stream = room.send("Exchange", metadata=SERVICE)
    await stream.write(named("a"))
    assert (await stream.read()).text == "a"
    await asyncio.sleep(0.7)
    await stream.write(named("b"))
    assert (await stream.read()).text == "b"
    stream.cancel()
    assert await sooner_or_later(in_time, rounds=10)


async def test_nothing_is_read_on_credentials_that_ended(room: Probe) -> None:
    """A token revoked in the middle of a stream ends it at the next message."""
    session_id = uuid4()
    stream = room.send("Exchange", metadata=bearer(room.issuer.token(sid=str(session_id))))
    await stream.write(Ask(text="a"))
    assert (await stream.read()).text == "a"
    room.verifier.revoke(Revocations([session_id], []))
    await stream.write(Ask(text="b"))
    with pytest.raises(aio.AioRpcError) as error:
        await stream.read()
    assert refusal_of(error.value) == (StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")


async def test_a_caller_that_leaves_ends_the_handler(room: Probe) -> None:
    """A cancelled stream closes its handler's generator."""
    closed = asyncio.Event()

    async def waits(requests: Any, _: Any) -> AsyncGenerator[Any, None]:
        try:
            async for request in requests:
                yield Answer(text=request.text)
        finally:
            closed.set()

    room.stream = waits
    stream = room.send("Exchange", metadata=SERVICE)
    await stream.write(named("a"))
    await stream.read()
    stream.cancel()
    await until(closed.is_set)


async def test_a_drain_ends_streams_of_requests(transport: str) -> None:
    """SIGTERM ends one that is open with STOPPING, long before the drain would be over."""
    async with probe.composed(transport=transport, drain_seconds=60) as room:
        room.stream = answer_each
        serving = asyncio.create_task(room.server.serve())
        await until(lambda: room.server.port > 0)
        async with aio.insecure_channel(room.address) as channel:
            room.channel = channel
            await asyncio.wait_for(channel.channel_ready(), SECONDS)
            stream = room.send("Exchange", metadata=SERVICE)
            await stream.write(named("a"))
            assert (await stream.read()).text == "a"
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(aio.AioRpcError) as error:
                await asyncio.wait_for(stream.read(), 30)
            assert refusal_of(error.value) == (StatusCode.UNAVAILABLE, "STOPPING")
            await asyncio.wait_for(serving, 30)
