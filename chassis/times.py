"""Times on the wire: google.protobuf.Timestamp ⇄ datetime in UTC."""

from datetime import UTC, datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chassis.clock import EPOCH
from chassis.errors import FieldViolation
from chassis.refusals import InvalidRequest

_DAY_SECONDS = 86_400


def to_timestamp(value: datetime) -> Timestamp:
    """Returns the wire form of an aware datetime, at a third of FromDatetime's cost."""
    since = value - EPOCH
    seconds = since.days * _DAY_SECONDS + since.seconds
    return Timestamp(seconds=seconds, nanos=since.microseconds * 1000)


def read_time(request: Message, name: str) -> datetime | None:
    """Returns a request's time, None if absent; InvalidRequest outside the years 1 to 9999."""
    if not request.HasField(name):
        return None
    try:
        moment: datetime = getattr(request, name).ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        broken = FieldViolation(name, "timestamp.valid", "is not a valid google.protobuf.Timestamp")
        raise InvalidRequest(violations=(broken,)) from error
    return moment
