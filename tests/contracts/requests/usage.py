"""Requests of UsageService."""

import secrets
from collections.abc import Callable
from typing import Any

from finity.usage.v1 import usage_pb2
from google.protobuf.message import Message

from tests.contracts.requests.given import Given


def _grant(given: Given) -> Message:
    return usage_pb2.GrantCreditsRequest(
        user_id=given.somebody.user_id,
        amount=1,
        source="contract",
        source_ref=secrets.token_hex(8),
    )


def _record(given: Given) -> Message:
    return usage_pb2.RecordUsageRequest(event=given.event())


def _record_batch(given: Given) -> Message:
    return usage_pb2.RecordUsageBatchRequest(events=[given.event(), given.event()])


def _ingest(given: Given) -> Message:
    return usage_pb2.IngestUsageRequest(sequence=1, events=[given.event(), given.event()])


FACTORIES: dict[Any, Callable[[Given], Message]] = {
    usage_pb2.OpenAccountRequest: lambda given: usage_pb2.OpenAccountRequest(
        user_id=given.somebody.user_id
    ),
    usage_pb2.GrantCreditsRequest: _grant,
    usage_pb2.GetBalanceRequest: lambda given: usage_pb2.GetBalanceRequest(user_id=given.subject),
    usage_pb2.RecordUsageRequest: _record,
    usage_pb2.RecordUsageBatchRequest: _record_batch,
    usage_pb2.IngestUsageRequest: _ingest,
    usage_pb2.ListUsageRequest: lambda given: usage_pb2.ListUsageRequest(user_id=given.subject),
    usage_pb2.EraseUserRequest: lambda given: usage_pb2.EraseUserRequest(
        user_id=given.somebody.user_id
    ),
}
