"""Other rooms as auth sees them."""

from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from grpc import aio

from chassis.outbox import Event


class Usage:
    """The usage room: opens an account for every new user, closes it when the user is erased."""

    def __init__(self, channel: aio.Channel) -> None:
        self._stub = usage_pb2_grpc.UsageServiceStub(channel)

    async def deliver(self, event: Event) -> None:
        """Delivers an event by its topic; a topic nobody here knows is a defect."""
        match event.topic:
            case "user_registered":
                await self.user_registered(event)
            case "user_erased":
                await self.user_erased(event)
            case _:
                raise ValueError(f"usage takes no {event.topic}")

    async def user_registered(self, event: Event) -> None:
        """Delivers user_registered; opening an open account changes nothing."""
        request = usage_pb2.OpenAccountRequest(user_id=event.payload["user_id"])
        await self._stub.OpenAccount(request)

    async def user_erased(self, event: Event) -> None:
        """Delivers user_erased; closing a closed account changes nothing."""
        request = usage_pb2.EraseUserRequest(user_id=event.payload["user_id"])
        await self._stub.EraseUser(request)
