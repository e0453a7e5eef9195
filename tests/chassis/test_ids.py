"""chassis.ids: UUIDv7 made by the application."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import RFC_4122, UUID, uuid4

import pytest

from chassis.ids import uuid7, uuid7_floor, uuid7_time, uuid7s

NOW = datetime(2026, 3, 1, 12, 30, 15, 123_999, tzinfo=UTC)


def test_an_id_is_a_version_7_uuid_of_its_millisecond() -> None:
    """An id carries version, variant and the millisecond it was made in."""
    made = uuid7(NOW)
    assert (made.version, made.variant) == (7, RFC_4122)
    assert uuid7_time(made) == NOW.replace(microsecond=123_000)


def test_ids_of_one_millisecond_differ() -> None:
    """Ten thousand ids of one instant are ten thousand ids."""
    assert len({uuid7(NOW) for _ in range(10_000)}) == 10_000


def test_ids_made_together_are_as_ids_made_alone() -> None:
    """A thousand of them differ, and each is a version 7 UUID of its millisecond."""
    made = list(islice(uuid7s(NOW), 1_000))
    assert len(set(made)) == 1_000
    for each in made:
        assert (each.version, each.variant) == (7, RFC_4122)
        assert uuid7_time(each) == NOW.replace(microsecond=123_000)


def test_ids_sort_by_time() -> None:
    """An id made a millisecond later is greater, whatever its random bits."""
    later = NOW + timedelta(milliseconds=1)
    assert all(uuid7(NOW) < uuid7(later) for _ in range(1_000))


def test_the_floor_bounds_its_millisecond_from_below() -> None:
    """No id of an instant is below its floor, none of the millisecond before reaches it."""
    floor = uuid7_floor(NOW)
    before = NOW - timedelta(milliseconds=1)
    assert all(uuid7(before) < floor <= uuid7(NOW) for _ in range(1_000))
    assert (floor.version, uuid7_time(floor)) == (7, NOW.replace(microsecond=123_000))


@pytest.mark.parametrize("year", [1970, 9999])
def test_far_years_survive(year: int) -> None:
    """The first and the last year of a datetime fit into an id."""
    at = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert uuid7_time(uuid7(at)) == at


def test_a_time_past_the_calendar_is_its_end() -> None:
    """An id of the year 10889, the last there is, reads as the end of 9999 and is no error."""
    end = datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)
    assert uuid7_time(UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")) == end


def test_another_version_carries_no_time() -> None:
    """The time of an id that is not a UUIDv7 is refused."""
    with pytest.raises(ValueError, match="not a UUIDv7"):
        uuid7_time(uuid4())
