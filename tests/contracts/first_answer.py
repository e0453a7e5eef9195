"""One answer of any method, whether it gives one or many."""

from typing import Any

from grpc import aio

from chassis.contract import Method
from tests.running import Metadata


async def first_answer(
    channel: aio.Channel, method: Method, payload: bytes, metadata: Metadata, *, seconds: float
) -> None:
    """Makes a call and reads its first message; AioRpcError if it is refused instead."""
    if not (method.streams or method.takes_stream):
        unary: Any = channel.unary_unary(method.path)
        await unary(payload, metadata=metadata, timeout=seconds)
        return
    # A stream of one request is the same on the wire, sent before an answer can come in between.
    stream: Any = channel.unary_stream(method.path)
    call = stream(payload, metadata=metadata, timeout=seconds)
    await call.read()
    call.cancel()
