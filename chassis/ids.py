"""Ids: UUIDv7 (RFC 9562 section 5.7), made by the application and sorted by time."""

import os
from datetime import UTC, datetime, timedelta
from uuid import UUID

from asyncpg.pgproto import pgproto

VERSION = 7
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
# 48 bits reach the year 10889, a datetime does not.
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND
_VERSION_BITS = VERSION << 76
VARIANT = 0b10
_VARIANT_BITS = VARIANT << 62
_RANDOM_A = 0xFFF << 64
_RANDOM_B = (1 << 62) - 1


def uuid7(now: datetime) -> UUID:
    """Returns a new id whose time is `now`, to the millisecond."""
    random = int.from_bytes(os.urandom(10))
    return _make(_floor(now) | (random & (_RANDOM_A | _RANDOM_B)))


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
    return _EPOCH + min(bits >> 80, _LAST) * _MILLISECOND


def _make(bits: int) -> UUID:
    made: UUID = pgproto.UUID(bits.to_bytes(16))
    return made


def _floor(at: datetime) -> int:
    return ((at - _EPOCH) // _MILLISECOND) << 80 | _VERSION_BITS | _VARIANT_BITS
