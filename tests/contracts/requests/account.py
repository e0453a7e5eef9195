"""Requests of AccountLifecycleService."""

from typing import Any

from finity.auth.v1 import account_pb2, auth_pb2
from google.protobuf.message import Message

from tests.contracts.requests import Factory
from tests.contracts.requests.given import Given


async def _delete(given: Given) -> Message:
    # Whoever is an administrator must not be the last one.
    await given.house.person(role=auth_pb2.ROLE_ADMIN)
    return account_pb2.DeleteAccountRequest()


FACTORIES: dict[Any, Factory] = {
    account_pb2.DeleteAccountRequest: _delete,
    account_pb2.CancelDeletionRequest: lambda _: account_pb2.CancelDeletionRequest(),
    account_pb2.ExportMyDataRequest: lambda given: account_pb2.ExportMyDataRequest(
        user_id=given.subject
    ),
}
