"""Other rooms as auth sees them."""

from finity.usage.v1 import quota_pb2, quota_pb2_grpc, usage_pb2, usage_pb2_grpc
from grpc import aio

from chassis.outbox import Event

_ROLES = {
    "free": quota_pb2.ACCOUNT_ROLE_FREE,
    "pro": quota_pb2.ACCOUNT_ROLE_PRO,
    "admin": quota_pb2.ACCOUNT_ROLE_ADMIN,
}


class Usage:
    """The usage room: opens an account for every new user, keeps its role, closes it at the end."""

    def __init__(self, channel: aio.Channel) -> None:
        self._stub = usage_pb2_grpc.UsageServiceStub(channel)
        self._quotas = quota_pb2_grpc.QuotaServiceStub(channel)

    async def deliver(self, event: Event) -> None:
        """Delivers an event by its topic; a topic nobody here knows is a defect."""
        match event.topic:
            case "user_registered":
                await self.user_registered(event)
            case "user_erased":
                await self.user_erased(event)
            case "role_changed":
                await self.role_changed(event)
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

    async def role_changed(self, event: Event) -> None:
        """Delivers role_changed; a change that is older than the last one changes nothing."""
        request = quota_pb2.SetAccountRoleRequest(
            user_id=event.payload["user_id"],
            role=_ROLES[event.payload["role"]],
            sequence=int(event.payload["sequence"]),
        )
        await self._quotas.SetAccountRole(request)
