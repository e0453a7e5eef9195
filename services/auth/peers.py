"""Other rooms as auth sees them."""

from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from grpc import aio

from chassis.outbox import Event


class Usage:
    """The usage room: opens an account for every new user."""

    def __init__(self, channel: aio.Channel) -> None:
        self._stub = usage_pb2_grpc.UsageServiceStub(channel)

    async def user_registered(self, event: Event) -> None:
        """Delivers user_registered; opening an open account changes nothing."""
        request = usage_pb2.OpenAccountRequest(user_id=event.payload["user_id"])
        await self._stub.OpenAccount(request)
