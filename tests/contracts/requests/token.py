"""Requests of TokenService."""

from collections.abc import Callable
from typing import Any

from finity.auth.v1 import token_pb2
from google.protobuf.message import Message

from tests.contracts.requests.given import Given

FACTORIES: dict[Any, Callable[[Given], Message]] = {
    token_pb2.RotateSigningKeysRequest: lambda _: token_pb2.RotateSigningKeysRequest(
        reason="contract"
    ),
    token_pb2.WatchRevocationsRequest: lambda _: token_pb2.WatchRevocationsRequest(),
}
