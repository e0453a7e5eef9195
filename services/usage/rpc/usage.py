"""UsageService on the wire: message in, use case, message out."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from grpc import aio

from chassis.calls import current_call
from chassis.clock import Clock
from chassis.errors import Refusal
from chassis.ids import parse_uuid
from chassis.pages import PageTokens
from chassis.times import read_time, to_timestamp
from services.usage.domain.grants import DEFAULT_PRIORITY, Category, Terms
from services.usage.domain.metering import Event, Outcome, Result
from services.usage.rpc.events import read_event, read_events, sentence_of
from services.usage.rpc.ingest import acknowledgement, read_batches
from services.usage.rpc.messages import FROM_CATEGORY, to_balance, to_grant, to_past_balance
from services.usage.rpc.refusals import REFUSALS, refusal_of
from services.usage.service.accounts import AccountService
from services.usage.service.ingest import IngestService
from services.usage.service.ledger import LedgerService
from services.usage.service.metering import MeteringService

DEFAULT_PAGE = 50
Context = aio.ServicerContext[Any, Any]
_ACCEPTED = usage_pb2.UsageResult(outcome=usage_pb2.UsageResult.OUTCOME_ACCEPTED)
_DUPLICATE = usage_pb2.UsageResult(outcome=usage_pb2.UsageResult.OUTCOME_DUPLICATE)


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(
        self,
        accounts: AccountService,
        ledger: LedgerService,
        metering: MeteringService,
        pages: PageTokens,
        clock: Clock,
    ) -> None:
        self._accounts = accounts
        self._ledger = ledger
        self._metering = metering
        self._ingest = IngestService(metering)
        self._pages = pages
        self._clock = clock

    async def OpenAccount(
        self, request: usage_pb2.OpenAccountRequest, context: Context
    ) -> usage_pb2.OpenAccountResponse:
        balance = await self._accounts.open_account(UUID(request.user_id))
        return usage_pb2.OpenAccountResponse(balance=to_balance(balance))

    async def GrantCredits(
        self, request: usage_pb2.GrantCreditsRequest, context: Context
    ) -> usage_pb2.GrantCreditsResponse:
        grant, balance = await self._accounts.grant(
            UUID(request.user_id), _terms(request), actor=current_call().caller.actor_key
        )
        return usage_pb2.GrantCreditsResponse(grant=to_grant(grant), balance=to_balance(balance))

    async def GetBalance(
        self, request: usage_pb2.GetBalanceRequest, context: Context
    ) -> usage_pb2.GetBalanceResponse:
        user_id, at = parse_uuid(request.user_id), read_time(request, "as_of_time")
        if at is not None:
            past = to_past_balance(at, *await self._ledger.balance_at(user_id, at))
            return usage_pb2.GetBalanceResponse(balance=past)
        balance = await self._accounts.get_balance(user_id)
        return usage_pb2.GetBalanceResponse(balance=to_balance(balance))

    async def RecordUsage(
        self, request: usage_pb2.RecordUsageRequest, context: Context
    ) -> usage_pb2.RecordUsageResponse:
        event = read_event(request.event, self._clock.now())
        result = (await self._metering.record([event]))[0]
        if result.outcome in REFUSALS:
            raise refusal_of(event.credits, result, self._clock.now())
        return usage_pb2.RecordUsageResponse(
            duplicate=result.outcome is Outcome.DUPLICATE, available=result.available
        )

    async def RecordUsageBatch(
        self, request: usage_pb2.RecordUsageBatchRequest, context: Context
    ) -> usage_pb2.RecordUsageBatchResponse:
        now = self._clock.now()
        events = await read_events(request.events, now)
        good = [event for event in events if isinstance(event, Event)]
        recorded = iter(await self._metering.record(good) if good else ())
        return usage_pb2.RecordUsageBatchResponse(
            results=[
                _rejected(event)
                if isinstance(event, Refusal)
                else _result(event, next(recorded), now)
                for event in events
            ]
        )

    async def IngestUsage(
        self, request_iterator: AsyncIterator[usage_pb2.IngestUsageRequest], context: Context
    ) -> AsyncGenerator[usage_pb2.IngestUsageResponse, None]:
        batches = read_batches(request_iterator, self._clock)
        async with contextlib.aclosing(self._ingest.ingest(batches)) as recorded:
            async for each in recorded:
                yield acknowledgement(each, self._clock.now())

    async def ListUsage(
        self, request: usage_pb2.ListUsageRequest, context: Context
    ) -> usage_pb2.ListUsageResponse:
        start, end = read_time(request, "start_time"), read_time(request, "end_time")
        scope = f"ListUsage:{request.user_id}:{start}:{end}"
        before = None
        if request.page_token:
            time, event_id = self._pages.decode(request.page_token, scope)
            before = (datetime.fromisoformat(time), UUID(event_id))
        events, last = await self._metering.list_usage(
            user_id=UUID(request.user_id),
            start=start,
            end=end,
            before=before,
            limit=request.page_size or DEFAULT_PAGE,
        )
        token = self._pages.encode((last[0].isoformat(), str(last[1])), scope) if last else ""
        return usage_pb2.ListUsageResponse(records=_records(events), next_page_token=token)

    async def EraseUser(
        self, request: usage_pb2.EraseUserRequest, context: Context
    ) -> usage_pb2.EraseUserResponse:
        balance = await self._accounts.erase_user(UUID(request.user_id))
        return usage_pb2.EraseUserResponse(balance=to_balance(balance))


def _result(event: Event, result: Result, now: datetime) -> usage_pb2.UsageResult:
    if result.outcome is Outcome.ACCEPTED:
        return _ACCEPTED
    if result.outcome is Outcome.DUPLICATE:
        return _DUPLICATE
    return _rejected(refusal_of(event.credits, result, now))


def _rejected(refusal: Refusal) -> usage_pb2.UsageResult:
    return usage_pb2.UsageResult(
        outcome=usage_pb2.UsageResult.OUTCOME_REJECTED,
        reason=refusal.reason,
        message=sentence_of(refusal),
        metadata=refusal.metadata,
    )


def _terms(request: usage_pb2.GrantCreditsRequest) -> Terms:
    priority = request.priority if request.HasField("priority") else DEFAULT_PRIORITY
    category = FROM_CATEGORY.get(request.category, Category.PROMOTIONAL)
    return Terms(
        request.source,
        request.source_ref,
        request.amount,
        priority,
        category,
        read_time(request, "effective_time"),
        read_time(request, "expire_time"),
    )


def _records(events: Sequence[Event]) -> list[usage_pb2.UsageRecord]:
    return [
        usage_pb2.UsageRecord(
            event_id=str(event.id),
            tool_name=event.tool_name,
            credits=event.credits,
            event_time=to_timestamp(event.time),
        )
        for event in events
    ]
