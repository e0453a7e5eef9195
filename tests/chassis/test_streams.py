"""Server streams through the gate, on both transports."""

import asyncio
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
from tests.chassis.waiting import until
from tests.factories import sooner_or_later
from tests.running import bearer, refusal_of


@pytest.fixture
async def room(transport: str) -> AsyncIterator[Probe]:
    """The probe on each transport; a unary call would have half a second."""
    async with probe.serve(transport=transport, default_deadline=0.5) as running:
        yield running


async def refused(stream: Any) -> aio.AioRpcError:
    """Reads a stream to its end, which must be a refusal."""
    with pytest.raises(aio.AioRpcError) as error:
        async for _ in stream:
            pass
    return error.value


async def refusal(stream: Any) -> tuple[StatusCode, str]:
    return refusal_of(await refused(stream))


def handled(code: StatusCode) -> int:
    return TALLIES.of(CONTRACT.full_name, "Watch").codes[code.value[0]]


async def test_a_stream_is_written_whole(room: Probe) -> None:
    """Every message of the handler arrives, and the call is counted once."""
    before = handled(StatusCode.OK)
    stream = room.watch(Ask(text="a", user_id="u"), metadata=SERVICE)
    assert [answer.text async for answer in stream] == ["a", "a", "a"]
    # Counted when the handler has ended, which may be after the last message.
    await until(lambda: handled(StatusCode.OK) == before + 1)


async def test_a_stream_is_admitted_like_a_call(room: Probe) -> None:
    """Credentials, subject, field rules and bytes are looked at before the handler is asked."""
    user = room.issuer.token()
    missing = (StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")
    assert await refusal(room.watch()) == missing
    other = room.watch(Ask(user_id=str(uuid4())), metadata=bearer(user))
    assert await refusal(other) == (StatusCode.PERMISSION_DENIED, "SUBJECT_DENIED")
    long = room.watch(Ask(text="x" * 21, user_id="u"), metadata=SERVICE)
    assert await refusal(long) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    noise = room.watch(b"\xff\xff", metadata=SERVICE)
    assert await refusal(noise) == (StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


async def test_a_refusal_in_the_middle_ends_it(room: Probe) -> None:
    """What a handler raises after a message is the stream's status."""

    async def breaks(request: Any, _: Any) -> AsyncGenerator[Any, None]:
        yield Answer(text=request.text)
        raise Conflict

    room.stream = breaks
    assert await refusal(room.watch(Ask(user_id="u"), metadata=SERVICE)) == (
        StatusCode.ABORTED,
        "CONFLICT",
    )


async def test_a_stream_has_its_caller_s_deadline_alone(room: Probe) -> None:
    """The default deadline of unary calls is not a stream's; its caller's own is."""

    async def slow(request: Any, _: Any) -> AsyncGenerator[Any, None]:
        while True:
            yield Answer(text=request.text)
            await asyncio.sleep(0.3)

    async def in_time() -> bool:
        short = room.watch(Ask(user_id="u"), metadata=SERVICE, timeout=0.4)
        return passed(await refused(short))

    room.stream = slow
    stream = room.watch(Ask(user_id="u"), metadata=SERVICE)
    for _ in range(3):
        assert await stream.read() is not aio.EOF
    stream.cancel()
    assert await sooner_or_later(in_time, rounds=10)


async def test_nothing_is_written_on_credentials_that_ended(room: Probe) -> None:
    """A token revoked while a stream waits ends it before the next message."""
    go_on = asyncio.Event()

    async def waits(request: Any, _: Any) -> AsyncGenerator[Any, None]:
        yield Answer(text="first")
        await go_on.wait()
        yield Answer(text="second")

    room.stream = waits
    session_id = uuid4()
    stream = room.watch(metadata=bearer(room.issuer.token(sid=str(session_id))))
    assert (await stream.read()).text == "first"
    room.verifier.revoke(Revocations([session_id], []))
    go_on.set()
    with pytest.raises(aio.AioRpcError) as error:
        await stream.read()
    assert refusal_of(error.value) == (StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")


async def test_a_caller_that_leaves_ends_the_handler(room: Probe) -> None:
    """A cancelled stream closes its handler's generator."""
    closed = asyncio.Event()

    async def endless(request: Any, _: Any) -> AsyncGenerator[Any, None]:
        try:
            while True:
                yield Answer()
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    room.stream = endless
    stream = room.watch(Ask(user_id="u"), metadata=SERVICE)
    await stream.read()
    stream.cancel()
    await until(closed.is_set)
