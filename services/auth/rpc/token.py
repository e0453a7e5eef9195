"""TokenService on the wire: message in, use case, message out."""

import contextlib
from collections.abc import AsyncGenerator

from finity.auth.v1 import auth_pb2, token_pb2, token_pb2_grpc

from chassis.calls import current_call
from chassis.idempotency import key_of
from chassis.times import read_time, to_timestamp
from services.auth.rpc.messages import Context
from services.auth.service.authority import Authority
from services.auth.service.room import Room
from services.auth.service.rotation import KeyService


class TokenServicer(token_pb2_grpc.TokenServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(self, room: Room, keys: KeyService, authority: Authority) -> None:
        self._keys = keys
        self._authority = authority
        self._secret = room.derive("idempotency")

    async def RotateSigningKeys(
        self, request: token_pb2.RotateSigningKeysRequest, context: Context
    ) -> token_pb2.RotateSigningKeysResponse:
        rotation = await self._keys.rotate(
            reason=request.reason,
            caller=current_call().caller,
            key=key_of(request, self._secret),
            withdraw=request.withdraw,
        )
        return token_pb2.RotateSigningKeysResponse(
            kid=rotation.kid,
            activate_time=to_timestamp(rotation.activates_at),
            created=rotation.created,
        )

    async def WatchRevocations(
        self, request: token_pb2.WatchRevocationsRequest, context: Context
    ) -> AsyncGenerator[token_pb2.WatchRevocationsResponse, None]:
        watched = self._authority.watch(read_time(request, "since_time"))
        async with contextlib.aclosing(watched):
            async for revoked in watched:
                yield token_pb2.WatchRevocationsResponse(
                    session_ids=map(str, revoked.sessions),
                    users=[
                        auth_pb2.UserRevocation(user_id=str(user_id), min_token_version=version)
                        for user_id, version in revoked.versions
                    ],
                    as_of_time=to_timestamp(revoked.as_of) if revoked.as_of else None,
                    keys_version=revoked.keys,
                )
