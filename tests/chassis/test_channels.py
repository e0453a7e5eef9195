"""chassis.channels: calls to other services, over real channels to a real server."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import aio

from chassis.callers import PUBLIC
from chassis.calls import Call, current_call, enter
from chassis.channels import open_channel
from chassis.contract import methods_of
from chassis.errors import Code, Refusal
from chassis.refusals import (
    Conflict,
    DatabaseUnavailable,
    DeadlinePassed,
    InvalidRequest,
    Overloaded,
)
from tests.chassis import probe
from tests.chassis.probe import CONTRACT, SERVICE_KEY, Answer, Ask, Probe, path

METHOD = methods_of([CONTRACT])[path("Open")]


@pytest.fixture
async def room(transport: str) -> AsyncIterator[Probe]:
    async with probe.serve(transport=transport) as running:
        yield running


@contextlib.asynccontextmanager
async def channel_to(
    room: Probe, *, key: str = SERVICE_KEY, default: float = 5.0
) -> AsyncIterator[aio.Channel]:
    channel = open_channel(room.address, key, default)
    try:
        yield channel
    finally:
        await channel.close()


def answering(seconds: float, request_id: str = "r-1") -> None:
    """Makes the test's task one that answers a call."""
    enter(Call(METHOD, request_id, PUBLIC, time.monotonic() + seconds))


async def seen_by(room: Probe, channel: aio.Channel, **call: Any) -> Call:
    """Makes a call and returns the Call of the other side, its end made relative."""
    seen: list[Call] = []

    async def look(request: Any, context: Any) -> Any:
        theirs = current_call()
        theirs.ends = theirs.remaining()
        seen.append(theirs)
        return Answer()

    room.behaviour = look
    await room.call("Serve", Ask(user_id="somebody"), channel=channel, **call)
    return seen[0]


async def test_a_service_calls_as_itself(room: Probe) -> None:
    """Every call carries the service key."""
    async with channel_to(room) as channel:
        assert (await seen_by(room, channel)).caller.key == "service:test"


async def test_a_service_without_a_key_sends_none(room: Probe) -> None:
    """An empty key is no key, not an empty credential."""
    async with channel_to(room, key="") as channel:
        with pytest.raises(Refusal) as refused:
            await room.call("Serve", channel=channel)
    assert refused.value.reason == "CREDENTIALS_MISSING"


async def test_the_request_id_travels(room: Probe) -> None:
    """A call made while answering one has the same request id, other calls have their own."""
    async with channel_to(room) as channel:
        alone = await seen_by(room, channel)
        answering(60, "the-one")
        assert (await seen_by(room, channel)).request_id == "the-one"
        assert alone.request_id != "the-one"


async def test_every_call_has_a_deadline(room: Probe) -> None:
    """A call that names none gets the default, one that does keeps it."""
    async with channel_to(room, default=5.0) as channel:
        assert 2 < (await seen_by(room, channel)).ends <= 5
        assert 10 < (await seen_by(room, channel, timeout=30)).ends <= 30


async def test_the_deadline_travels(room: Probe) -> None:
    """A call made while answering one ends before that one does."""
    async with channel_to(room, default=50.0) as channel:
        answering(4)
        assert 1 < (await seen_by(room, channel)).ends < 4
        assert 1 < (await seen_by(room, channel, timeout=30)).ends < 4


async def test_a_call_that_is_over_makes_no_other(room: Probe) -> None:
    """With no time left the other side is not even asked."""
    async with channel_to(room) as channel:
        answering(0)
        with pytest.raises(DeadlinePassed):
            await room.call("Open", channel=channel)


async def test_a_peer_that_does_not_answer_is_a_passed_deadline(room: Probe) -> None:
    """When the other side takes too long the caller gets a refusal, never a driver's error."""

    async def sleep(request: Any, context: Any) -> Any:
        await asyncio.sleep(60)

    room.behaviour = sleep
    async with channel_to(room) as channel:
        with pytest.raises(Refusal) as refused:
            await room.call("Open", channel=channel, timeout=0.3)
    assert (refused.value.code, refused.value.reason) == (
        Code.DEADLINE_EXCEEDED,
        "DEADLINE_PASSED",
    )


async def test_unavailable_is_tried_again(room: Probe) -> None:
    """UNAVAILABLE is repeated up to three attempts; the caller learns nothing of the first two."""
    attempts = 0

    async def recover(request: Any, context: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise DatabaseUnavailable(retry_after=0.01)
        return Answer(text="at last")

    room.behaviour = recover
    async with channel_to(room) as channel:
        assert (await room.call("Open", channel=channel)).text == "at last"
    assert attempts == 3


@pytest.mark.parametrize(
    ("kind", "expected"), [(DatabaseUnavailable, 3), (Conflict, 1), (Overloaded, 1)]
)
async def test_only_unavailable_is_tried_again(
    room: Probe, kind: type[Refusal], expected: int
) -> None:
    """Other codes come back at once; UNAVAILABLE after its last attempt, as the typed refusal."""
    attempts = 0

    async def refuse(request: Any, context: Any) -> Any:
        nonlocal attempts
        attempts += 1
        raise kind(retry_after=0.01)

    room.behaviour = refuse
    async with channel_to(room) as channel:
        with pytest.raises(Refusal) as refused:
            await room.call("Open", channel=channel)
    assert refused.value.reason == kind.reason
    assert attempts == expected


async def test_a_refusal_is_rebuilt(room: Probe) -> None:
    """The other side's refusal is raised here with code, reason, domain and violations."""
    async with channel_to(room) as channel:
        with pytest.raises(Refusal) as refused:
            await room.call("Open", Ask(text="x" * 21), channel=channel)
    assert (refused.value.code, refused.value.reason) == (
        InvalidRequest.code,
        InvalidRequest.reason,
    )
    assert refused.value.domain == "finity"
    assert [v.field for v in refused.value.violations] == ["text"]


async def test_a_refusal_passes_through_a_chain(room: Probe, transport: str) -> None:
    """What the innermost service refuses is what the outermost caller reads, domain and all."""

    class CupMissing(Conflict):
        """There is no cup."""

        reason, domain = "CUP_MISSING", "kitchen.finity"

    async def refuse(request: Any, context: Any) -> Any:
        raise CupMissing

    room.behaviour = refuse
    async with channel_to(room) as inner, probe.serve(transport=transport) as outer:

        async def forward(request: Any, context: Any) -> Any:
            return await room.call("Open", channel=inner)

        outer.behaviour = forward
        async with channel_to(outer) as channel:
            with pytest.raises(Refusal) as refused:
                await outer.call("Open", channel=channel)
    assert (refused.value.reason, refused.value.domain) == ("CUP_MISSING", "kitchen.finity")
