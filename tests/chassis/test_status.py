"""chassis.status: a refusal on the wire and back, through real channels on both transports."""

from typing import Any

import pytest
from google.rpc import error_details_pb2
from grpc import aio

from chassis import refusals
from chassis.channels import open_channel
from chassis.errors import Code, FieldViolation, NotFound, Refusal
from chassis.status import DEFAULT_RETRY_AFTER, grpc_code, to_status
from tests.chassis import probe
from tests.chassis.test_refusals import ALL

RETRYABLE = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED}


class CupMissing(NotFound):
    """There is no such cup."""

    reason = "CUP_MISSING"


def details_of(refusal: Refusal) -> list[str]:
    return [detail.TypeName() for detail in to_status(refusal, "probe").details]


def test_a_room_s_refusal_has_the_room_s_domain() -> None:
    """ErrorInfo says reason, domain and metadata; shared refusals keep the domain "finity"."""
    status = to_status(CupMissing(metadata={"cup": "7"}), "kitchen")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "CUP_MISSING",
        "kitchen.finity",
        {"cup": "7"},
    )
    assert (status.code, status.message) == (5, "There is no such cup.")
    assert to_status(refusals.Conflict(), "kitchen").details[0].Unpack(info)
    assert info.domain == "finity"


@pytest.mark.parametrize("kind", ALL)
def test_what_is_worth_sending_again_says_when(kind: type[Refusal]) -> None:
    """RetryInfo comes with every retryable code and with no other, unless a delay was given."""
    retry = "google.rpc.RetryInfo"
    assert (retry in details_of(kind())) == (kind.code in RETRYABLE)
    assert retry in details_of(kind(retry_after=2))


def test_the_codes_are_grpc_s() -> None:
    """Each code has its gRPC code."""
    assert all(grpc_code(code).value[0] == code.value for code in Code)


@pytest.mark.parametrize("kind", ALL)
async def test_a_refusal_survives_the_wire(kind: type[Refusal], transport: str) -> None:
    """Code, reason, domain, message, metadata, delay and violations arrive as they were raised."""
    violations = (
        FieldViolation("event.tool_name", "string.max_len", "must be at most 9 characters"),
        FieldViolation("events[3].id", "string.uuid", "must be a UUID: ümlaut"),
    )
    sent = kind(metadata={"balance": "3"}, retry_after=1.25, violations=violations)

    async def refuse(request: object, context: object) -> None:
        raise sent

    async with probe.serve(refuse, transport=transport) as room:
        # A channel that does not retry: some of these are retryable.
        channel = open_channel(room.address, "", 5)
        room.channel = channel
        try:
            with pytest.raises(Refusal) as received:
                await room.call("Open")
        finally:
            await channel.close()
    got = received.value
    assert (got.code, got.reason, got.domain) == (kind.code, kind.reason, "finity")
    assert (got.message, got.metadata) == (sent.message, {"balance": "3"})
    assert (got.retry_after, got.violations) == (1.25, violations)


async def test_a_delay_is_said_when_the_refusal_named_none(transport: str) -> None:
    """A retryable refusal without a delay of its own carries the default one."""

    async def refuse(request: object, context: object) -> None:
        raise refusals.Conflict

    async with probe.serve(refuse, transport=transport) as room:
        channel = open_channel(room.address, "", 5)
        with pytest.raises(Refusal) as received:
            await room.call("Open", channel=channel)
        await channel.close()
    assert received.value.retry_after == DEFAULT_RETRY_AFTER


async def room_less(channel: aio.Channel) -> None:
    call: Any = channel.unary_unary("/a/b")
    await call(b"")


async def test_a_peer_that_says_no_reason_is_given_one() -> None:
    """A status without ErrorInfo becomes a reason of the contract where its code has one."""
    channel = open_channel("127.0.0.1:1", "", 5)
    with pytest.raises(Refusal) as refused:
        await room_less(channel)
    await channel.close()
    assert (refused.value.code, refused.value.reason) == (Code.UNAVAILABLE, "PEER_UNAVAILABLE")
    assert not isinstance(refused.value, aio.AioRpcError)
