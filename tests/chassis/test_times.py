"""chassis.times: Timestamp and datetime."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from finity.usage.v1 import usage_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from chassis.refusals import InvalidRequest
from chassis.times import read_time, to_timestamp

ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
# Far enough from the ends to be in years 1 to 9999 in every zone.
MOMENTS = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=ZONES)  # noqa: DTZ001


def test_a_time_survives_the_wire() -> None:
    """A datetime comes back as it was sent, to the microsecond; absent is None."""
    at = datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)
    request = usage_pb2.ListUsageRequest(start_time=to_timestamp(at))
    assert read_time(request, "start_time") == at
    assert read_time(request, "end_time") is None


@given(MOMENTS)
def test_a_time_is_written_as_protobuf_writes_it(moment: datetime) -> None:
    """Before 1970 too, and in any zone."""
    wanted = Timestamp()
    wanted.FromDatetime(moment)
    assert to_timestamp(moment) == wanted


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(10**15, 0), (-(10**15), 0), (0, -1), (0, 2**31 - 1)]
)
def test_a_time_nobody_has_is_an_invalid_request(seconds: int, nanos: int) -> None:
    """A Timestamp outside the years 1 to 9999 is the caller's mistake and names its field."""
    stamp = Timestamp(seconds=seconds, nanos=nanos)
    with pytest.raises(InvalidRequest) as refused:
        read_time(usage_pb2.ListUsageRequest(end_time=stamp), "end_time")
    assert [violation.field for violation in refused.value.violations] == ["end_time"]
