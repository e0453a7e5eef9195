"""
The smallest good call straight to a service: a deadline, a key, a typed refusal.

    FINITY_SERVICE_KEY=... python examples/python_client.py USER_ID [CREDITS]
"""

import asyncio
import os
import sys
from datetime import UTC, datetime

from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status

from chassis.ids import uuid7

ADDRESS = os.environ.get("FINITY_USAGE_ADDRESS", "127.0.0.1:50053")
KEY = os.environ.get("FINITY_SERVICE_KEY", "")
DEADLINE_SECONDS = 2.0


async def main(user_id: str, spent: int) -> None:
    # Made once per tool call: sending the same event again spends nothing again.
    event = usage_pb2.UsageEvent(
        event_id=str(uuid7(datetime.now(UTC))),
        user_id=user_id,
        tool_name="example.python",
        credits=spent,
    )
    async with aio.insecure_channel(ADDRESS) as channel:
        usage = usage_pb2_grpc.UsageServiceStub(channel)
        try:
            answer = await usage.RecordUsage(
                usage_pb2.RecordUsageRequest(event=event),
                timeout=DEADLINE_SECONDS,
                metadata=(("authorization", f"Bearer {KEY}"),),
            )
        except aio.AioRpcError as error:
            sys.exit(refusal(error))
    print(f"recorded {event.event_id}: {spent} spent, {answer.available} left")  # noqa: T201


def refusal(error: aio.AioRpcError) -> str:
    """Returns what a program decides by: the code, the reason and its metadata."""
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType] - has all it reads
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            facts = "".join(f" {key}={value}" for key, value in sorted(info.metadata.items()))
            return f"refused: {error.code().name} {info.reason}{facts}"
    return f"failed: {error.code().name}: {error.details()}"


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1))  # noqa: PLR2004
