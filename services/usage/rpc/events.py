"""Events and what became of them on the wire, for every method that records."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

from finity.usage.v1 import usage_pb2

from chassis.contract import validate
from chassis.errors import Refusal
from chassis.ids import parse_uuid, uuid7_time
from services.usage.domain import metering
from services.usage.domain.metering import Event
from services.usage.errors import EventTimeOutOfRange

DECODE_AT_ONCE = 100


async def read_events(
    events: Sequence[usage_pb2.UsageEvent], now: datetime
) -> list[Event | Refusal]:
    """Returns each event, or what it is refused for."""
    read: list[Event | Refusal] = []
    for start in range(0, len(events), DECODE_AT_ONCE):
        chunk = events[start : start + DECODE_AT_ONCE]
        read.extend(_event_or_refusal(event, now) for event in chunk)
        # A whole batch at once would keep the flush of the one before from going on.
        await asyncio.sleep(0)
    return read


def read_event(event: usage_pb2.UsageEvent, now: datetime) -> Event:
    """Returns a valid event; EventTimeOutOfRange if its id's time is too far away."""
    event_id = parse_uuid(event.event_id)
    time = uuid7_time(event_id)
    if not metering.in_window(time, now):
        raise EventTimeOutOfRange
    return Event(event_id, parse_uuid(event.user_id), event.tool_name, event.credits, time)


def sentence_of(refusal: Refusal) -> str:
    """Returns one sentence for a developer."""
    return "; ".join(f"{v.field}: {v.description}" for v in refusal.violations) or refusal.message


def _event_or_refusal(event: usage_pb2.UsageEvent, now: datetime) -> Event | Refusal:
    try:
        validate(event)
        return read_event(event, now)
    except Refusal as refusal:
        return refusal
