"""
Event ids that are the same in every run: UUIDv7 without chance.

The 48 bits of time are the event's, the other 74 come from the SHA-256 of the options
and of the file up to and including the row. So a log that has grown since keeps the
ids of its old rows, unless a shift moved them all, and equal rows of one file are
still events of their own.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from chassis.ids import uuid7_floor

_RANDOM_BYTES = 10
_LOW_BITS = 62
_LOW = (1 << _LOW_BITS) - 1
_HIGH = 0xFFF


class Chain:
    """Digests a file row by row; `options` are whatever else the events depend on."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        seed = json.dumps(options, sort_keys=True)
        self._hash = hashlib.sha256(f"finity usage import 1\n{seed}\n".encode())

    def feed(self, line: bytes) -> None:
        """Adds the next row, without its line end."""
        self._hash.update(line + b"\n")

    def event_id(self, time: datetime) -> UUID:
        """Returns the id of the row fed last, an event of that time."""
        bits = int.from_bytes(self._hash.digest()[:_RANDOM_BYTES])
        random = (bits >> _LOW_BITS & _HIGH) << 64 | bits & _LOW
        return UUID(int=uuid7_floor(time).int | random)
