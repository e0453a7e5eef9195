"""Ids: UUIDv7 (RFC 9562 section 5.7), made by the application and sorted by time."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

from asyncpg.pgproto import pgproto

from chassis.clock import EPOCH

VERSION = 7
_MILLISECOND = timedelta(milliseconds=1)
# 48 bits reach the year 10889, a datetime does not.
_LAST = (datetime.max.replace(tzinfo=UTC) - EPOCH) // _MILLISECOND
_VERSION_BITS = VERSION << 76
VARIANT = 0b10
_VARIANT_BITS = VARIANT << 62
# rand_a and rand_b, around the variant.
_RANDOM = 0xFFF << 64 | (1 << 62) - 1
_RANDOM_BYTES = 10
_AT_ONCE = 32


def uuid7(now: datetime) -> UUID:
    """Returns a new id whose time is `now`, to the millisecond."""
    return _with_random(_floor(now), os.urandom(_RANDOM_BYTES))


def uuid7s(now: datetime) -> Iterator[UUID]:
    """Yields new ids whose time is `now`, each at a third of what one costs alone."""
    floor = _floor(now)
    while True:
        random = os.urandom(_AT_ONCE * _RANDOM_BYTES)
        for start in range(0, len(random), _RANDOM_BYTES):
            yield _with_random(floor, random[start : start + _RANDOM_BYTES])


def uuid7_floor(at: datetime) -> UUID:
    """Returns the smallest UUIDv7 of the millisecond `at`; the bound of a range of ids."""
    return _make(_floor(at))


def parse_uuid(text: str) -> UUID:
    """Reads an id as asyncpg's own UUID, eight times as fast; ValueError for anything else."""
    parsed: UUID = pgproto.UUID(text)
    return parsed


def uuid7_time(value: UUID) -> datetime:
    """Returns a UUIDv7's millisecond, the last of 9999 for later ones; ValueError if it is none."""
    bits = value.int
    if bits >> 76 & 0xF != VERSION or bits >> 62 & 0b11 != VARIANT:
        raise ValueError(f"{value} is not a UUIDv7")
    return EPOCH + min(bits >> 80, _LAST) * _MILLISECOND


def _with_random(floor: int, random: bytes) -> UUID:
    return _make(floor | (int.from_bytes(random) & _RANDOM))


def _make(bits: int) -> UUID:
    made: UUID = pgproto.UUID(bits.to_bytes(16))
    return made


def _floor(at: datetime) -> int:
    return ((at - EPOCH) // _MILLISECOND) << 80 | _VERSION_BITS | _VARIANT_BITS
