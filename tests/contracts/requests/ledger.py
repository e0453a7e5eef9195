"""Requests of LedgerService."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from finity.usage.v1 import ledger_pb2, usage_pb2
from google.protobuf.message import Message

from tests.contracts.requests.given import Given


async def _grant(given: Given) -> usage_pb2.Grant:
    answer = await given.house.usage.GrantCredits(
        usage_pb2.GrantCreditsRequest(
            user_id=given.somebody.user_id,
            amount=2,
            source="contract",
            source_ref=secrets.token_hex(8),
        ),
        metadata=given.house.service,
    )
    return answer.grant


async def _void(given: Given) -> Message:
    return ledger_pb2.VoidGrantRequest(
        user_id=given.somebody.user_id, grant_id=(await _grant(given)).grant_id, reason="contract"
    )


async def _correct(given: Given) -> Message:
    await _grant(given)
    event = given.event()
    event.credits = 1
    await given.house.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(event=event), metadata=given.house.service
    )
    return ledger_pb2.CorrectUsageRequest(
        user_id=given.somebody.user_id,
        event_id=event.event_id,
        credits=1,
        reason="contract",
        idempotency_key=secrets.token_hex(8),
    )


FACTORIES: dict[Any, Callable[[Given], Message | Awaitable[Message]]] = {
    ledger_pb2.ListGrantsRequest: lambda given: ledger_pb2.ListGrantsRequest(user_id=given.subject),
    ledger_pb2.ListEntriesRequest: lambda given: ledger_pb2.ListEntriesRequest(
        user_id=given.subject
    ),
    ledger_pb2.VoidGrantRequest: _void,
    ledger_pb2.AdjustCreditsRequest: lambda given: ledger_pb2.AdjustCreditsRequest(
        user_id=given.somebody.user_id,
        amount=1,
        reason="contract",
        idempotency_key=secrets.token_hex(8),
    ),
    ledger_pb2.SetOverdraftLimitRequest: lambda given: ledger_pb2.SetOverdraftLimitRequest(
        user_id=given.somebody.user_id, overdraft_limit=5, reason="contract"
    ),
    ledger_pb2.CorrectUsageRequest: _correct,
    ledger_pb2.VerifyLedgerRequest: lambda given: ledger_pb2.VerifyLedgerRequest(
        user_id=given.somebody.user_id
    ),
}
