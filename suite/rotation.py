"""Asks the auth service for a new signing key."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from finity.auth.v1 import token_pb2, token_pb2_grpc
from grpc import aio

from suite.errors import SuiteError
from suite.importing import target

_SECONDS = 10.0
_CHANNEL = [("grpc.enable_http_proxy", 0)]


@dataclass(frozen=True, slots=True)
class Rotated:
    """The key that is next."""

    kid: str
    activates_at: datetime
    created: bool
    """False if it was made before and waits."""


def rotate(
    environment: Mapping[str, str], directory: Path, reason: str, *, withdraw: bool = False
) -> Rotated:
    """
    Returns the next key, which with `withdraw` is alone from now on.

    SuiteError if there is no auth service or it refuses.
    """
    auth = target.auth(environment, directory)
    request = token_pb2.RotateSigningKeysRequest(reason=reason, withdraw=withdraw)
    try:
        answer = asyncio.run(_ask(auth, request))
    except aio.AioRpcError as error:
        raise SuiteError(f"{auth.address} made no key: {error.details()}") from error
    return Rotated(answer.kid, answer.activate_time.ToDatetime(UTC), answer.created)


async def _ask(
    auth: target.Target, request: token_pb2.RotateSigningKeysRequest
) -> token_pb2.RotateSigningKeysResponse:
    async with aio.insecure_channel(auth.address, options=_CHANNEL) as channel:
        return await token_pb2_grpc.TokenServiceStub(channel).RotateSigningKeys(
            request,
            metadata=(("authorization", f"Bearer {auth.service_key}"),),
            timeout=_SECONDS,
        )
