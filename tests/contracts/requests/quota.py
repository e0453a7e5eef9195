"""Requests of QuotaService."""

from collections.abc import Callable
from typing import Any

from finity.usage.v1 import quota_pb2
from google.protobuf.message import Message

from tests.contracts.requests.given import Given


def _set(given: Given) -> Message:
    return quota_pb2.SetQuotaRequest(
        user_id=given.somebody.user_id,
        tool_name="contract",
        window=quota_pb2.QUOTA_WINDOW_DAY,
        max_calls=1_000_000,
    )


def _delete(given: Given) -> Message:
    return quota_pb2.DeleteQuotaRequest(
        role=quota_pb2.ACCOUNT_ROLE_ADMIN,
        tool_name="*",
        window=quota_pb2.QUOTA_WINDOW_MINUTE,
    )


def _set_role(given: Given) -> Message:
    return quota_pb2.SetAccountRoleRequest(
        user_id=given.somebody.user_id, role=quota_pb2.ACCOUNT_ROLE_FREE, sequence=1
    )


FACTORIES: dict[Any, Callable[[Given], Message]] = {
    quota_pb2.SetQuotaRequest: _set,
    quota_pb2.DeleteQuotaRequest: _delete,
    quota_pb2.ListQuotasRequest: lambda given: quota_pb2.ListQuotasRequest(user_id=given.subject),
    quota_pb2.CheckQuotaRequest: lambda given: quota_pb2.CheckQuotaRequest(
        user_id=given.subject, tool_name="contract", credits=1
    ),
    quota_pb2.SetTimeZoneRequest: lambda given: quota_pb2.SetTimeZoneRequest(
        user_id=given.subject, time_zone="Europe/Berlin"
    ),
    quota_pb2.SetAccountRoleRequest: _set_role,
}
