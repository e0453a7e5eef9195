"""ReportService on the wire: message in, use case, message out."""

import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from finity.usage.v1 import report_pb2, report_pb2_grpc
from google.api import httpbody_pb2
from google.protobuf.message import Message
from grpc import aio

from chassis.calls import current_call
from chassis.pages import PageTokens
from chassis.times import read_time, to_timestamp
from services.usage.domain.reports import Period
from services.usage.rpc.messages import to_balance
from services.usage.service.reports import Report, ReportService
from services.usage.service.watching import BalanceHub

DEFAULT_PAGE = 1000
Context = aio.ServicerContext[Any, Any]
_PERIODS = {
    report_pb2.GROUP_BY_HOUR: Period.HOUR,
    report_pb2.GROUP_BY_DAY: Period.DAY,
    report_pb2.GROUP_BY_MONTH: Period.MONTH,
}


class ReportServicer(report_pb2_grpc.ReportServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(self, reports: ReportService, hub: BalanceHub, pages: PageTokens) -> None:
        self._reports = reports
        self._hub = hub
        self._pages = pages

    async def SummarizeUsage(
        self, request: report_pb2.SummarizeUsageRequest, context: Context
    ) -> report_pb2.SummarizeUsageResponse:
        start, end = _range(request)
        groups = sorted(request.group_by)
        scope = f"SummarizeUsage:{request.user_id}:{start}:{end}:{groups}:{request.time_zone}"
        after = None
        if request.page_token:
            period, tool_name = self._pages.decode(request.page_token, scope)
            after = (int(period), tool_name)
        report = await self._reports.summarize(
            user_id=UUID(request.user_id),
            start=start,
            end=end,
            period=next((_PERIODS[group] for group in groups if group in _PERIODS), Period.RANGE),
            by_tool=report_pb2.GROUP_BY_TOOL in groups,
            time_zone=request.time_zone,
            after=after,
            limit=request.page_size or DEFAULT_PAGE,
        )
        last = report.last
        token = self._pages.encode((str(last[0]), last[1]), scope) if last else ""
        return report_pb2.SummarizeUsageResponse(
            summaries=_summaries(report), next_page_token=token
        )

    async def WatchBalance(
        self, request: report_pb2.WatchBalanceRequest, context: Context
    ) -> AsyncGenerator[report_pb2.WatchBalanceResponse, None]:
        watched = self._hub.watch(UUID(request.user_id), current_call().caller)
        async with contextlib.aclosing(watched):
            async for balance in watched:
                yield report_pb2.WatchBalanceResponse(balance=to_balance(balance))

    async def ExportUsage(
        self, request: report_pb2.ExportUsageRequest, context: Context
    ) -> AsyncGenerator[report_pb2.ExportUsageResponse, None]:
        start, end = _range(request)
        pieces = self._reports.export(user_id=UUID(request.user_id), start=start, end=end)
        async with contextlib.aclosing(pieces):
            named = False
            async for piece in pieces:
                # Not before there is a file: a refusal is none.
                if not named:
                    await context.send_initial_metadata(_download(start, end))
                    named = True
                file = httpbody_pb2.HttpBody(content_type="text/csv", data=piece.encode())
                yield report_pb2.ExportUsageResponse(file=file)


def _range(request: Message) -> tuple[datetime, datetime]:
    # The contract requires both.
    start, end = read_time(request, "start_time"), read_time(request, "end_time")
    return cast("datetime", start), cast("datetime", end)


def _summaries(report: Report) -> list[report_pb2.UsageSummary]:
    return [
        report_pb2.UsageSummary(
            period_start_time=to_timestamp(report.cuts[total.period - 1]),
            period_end_time=to_timestamp(report.cuts[total.period]),
            tool_name=total.tool_name,
            calls=total.calls,
            credits=total.credits,
        )
        for total in report.totals
    ]


def _download(start: datetime, end: datetime) -> tuple[tuple[str, str], ...]:
    """Returns what a gateway passes on as headers: the file's name (RFC 6266)."""
    name = f"usage-{start:%Y-%m-%d}-{end:%Y-%m-%d}.csv"
    return (("content-disposition", f'attachment; filename="{name}"'),)
