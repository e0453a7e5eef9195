"""Times on the wire: google.protobuf.Timestamp ⇄ datetime in UTC."""

from datetime import UTC, datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chassis.errors import FieldViolation
from chassis.refusals import InvalidRequest


def to_timestamp(value: datetime) -> Timestamp:
    """Returns the wire form of an aware datetime."""
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


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
