"""Other rooms as usage sees them."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from uuid import UUID

from finity.auth.v1 import (
    auth_pb2,
    auth_pb2_grpc,
    email_pb2,
    email_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)
from grpc import aio

from chassis.outbox import Event
from chassis.revocations import Revocations
from chassis.status import from_rpc_error
from chassis.times import read_time, to_timestamp


class Auth:
    """The auth room: it knows the keys and revocations of access tokens, and people's addresses."""

    def __init__(self, channel: aio.Channel) -> None:
        self._stub = auth_pb2_grpc.AuthServiceStub(channel)
        self._tokens = token_pb2_grpc.TokenServiceStub(channel)
        self._emails = email_pb2_grpc.EmailServiceStub(channel)

    async def signing_keys(self) -> Sequence[dict[str, str]]:
        """Returns the public keys as JSON Web Keys."""
        answer = await self._stub.GetSigningKeys(auth_pb2.GetSigningKeysRequest())
        return [{name.name: value for name, value in key.ListFields()} for key in answer.keys]

    async def revocations(self, since: datetime | None) -> Revocations:
        """Returns what was revoked after `since`, or everything that still matters."""
        request = auth_pb2.ListRevocationsRequest()
        if since is not None:
            request.since_time.CopyFrom(to_timestamp(since))
        answer = await self._stub.ListRevocations(request)
        return _revocations(answer)

    async def watch(self, since: datetime | None) -> AsyncGenerator[Revocations, None]:
        """Yields the same, and then whatever is revoked as it happens."""
        request = token_pb2.WatchRevocationsRequest()
        if since is not None:
            request.since_time.CopyFrom(to_timestamp(since))
        stream = self._tokens.WatchRevocations(request)
        try:
            async for message in stream:
                yield _revocations(message)
        except aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            stream.cancel()

    async def deliver(self, event: Event) -> None:
        """Delivers an event by its topic; a topic nobody here knows is a defect."""
        if event.topic != "usage_threshold":
            raise ValueError(f"auth takes no {event.topic}")
        payload = event.payload
        request = email_pb2.NotifyUserRequest(
            user_id=payload["user_id"],
            idempotency_key=str(event.id),
            usage_threshold=email_pb2.UsageThreshold(
                month=payload["month"],
                percent=payload["percent"],
                used=payload["used"],
                available=payload["available"],
            ),
        )
        await self._emails.NotifyUser(request)


def _revocations(
    message: auth_pb2.ListRevocationsResponse | token_pb2.WatchRevocationsResponse,
) -> Revocations:
    return Revocations(
        [UUID(session_id) for session_id in message.session_ids],
        [(UUID(user.user_id), user.min_token_version) for user in message.users],
        read_time(message, "as_of_time"),
        message.keys_version,
    )
