"""Requests of ReportService."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from finity.usage.v1 import report_pb2
from google.protobuf.message import Message

from chassis.times import to_timestamp
from tests.contracts.requests.given import Given


def _today(given: Given) -> datetime:
    return given.clock.now().replace(hour=0, minute=0, second=0, microsecond=0)


def _summarize(given: Given) -> Message:
    return report_pb2.SummarizeUsageRequest(
        user_id=given.subject,
        start_time=to_timestamp(_today(given)),
        end_time=to_timestamp(_today(given) + timedelta(days=1)),
        group_by=[report_pb2.GROUP_BY_TOOL, report_pb2.GROUP_BY_DAY],
        time_zone="Europe/Berlin",
    )


def _export(given: Given) -> Message:
    return report_pb2.ExportUsageRequest(
        user_id=given.subject,
        start_time=to_timestamp(_today(given)),
        end_time=to_timestamp(_today(given) + timedelta(days=1)),
    )


FACTORIES: dict[Any, Callable[[Given], Message]] = {
    report_pb2.SummarizeUsageRequest: _summarize,
    report_pb2.WatchBalanceRequest: lambda given: report_pb2.WatchBalanceRequest(
        user_id=given.subject
    ),
    report_pb2.ExportUsageRequest: _export,
}
