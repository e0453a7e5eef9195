"""
The admin log as a hash chain, computed apart from the database that computed it first.

The hash of an entry is the SHA-256 of these bytes, in this order; numbers are
big-endian, a text is 4 bytes of length and then its UTF-8:

    19   "finity.admin_log.v1" in ASCII, without a length
    8    seq, signed
    32   hash of the entry before; zeros for the first
    16   id
    …    actor, a text
    …    action, a text
    1    0 without a target, 1 with one
    16   id of the target, if there is one
    8    created_at: microseconds since 1970-01-01T00:00:00Z, signed
    4    how many details
    …    for each detail in the byte order of its key: key, a text; value, a text
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

FIRST_HASH = bytes(32)
_DOMAIN = b"finity.admin_log.v1"
_SEQ = struct.Struct(">q")
_LENGTH = struct.Struct(">I")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Action(StrEnum):
    """What administrators and services do; the values of admin_logs.action."""

    SET_ROLE = "set_role"
    BAN_USER = "ban_user"
    UNBAN_USER = "unban_user"
    REVOKE_SESSIONS = "revoke_sessions"
    REVOKE_SESSION = "revoke_session"
    IMPERSONATE_USER = "impersonate_user"
    RESET_MFA = "reset_mfa"
    EXPORT_USER_DATA = "export_user_data"
    IMPORT_USER = "import_user"
    ROTATE_SIGNING_KEYS = "rotate_signing_keys"


@dataclass(frozen=True, slots=True)
class AdminLog:
    """One entry."""

    seq: int
    """Its place, from 1 on without a gap."""
    id: UUID
    actor: str
    """ "user:<id>" or "service:<name>"."""
    action: str
    target: UUID | None
    details: Mapping[str, str]
    created_at: datetime
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The last place and hash of the chain, kept beside it."""

    seq: int
    hash: bytes


class Fault(StrEnum):
    """What is wrong with an entry, or with the end of the chain."""

    GAP = "gap"
    """Its place is not the one after the entry before: some were removed or added."""
    LINK = "link"
    """It does not carry the hash of the entry before."""
    CONTENT = "content"
    """It is not what its hash was made of."""
    HEAD = "head"
    """The chain does not end where the head says: the last were removed, or some added."""
    PROOF = "proof"
    """The entry is not the one whose hash was noted earlier: the chain was written anew."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The first entry at which the chain does not hold."""

    fault: Fault
    seq: int
    id: UUID | None
    """None where an entry should be and is not."""


class Chain:
    """Walks the log from its first entry and remembers the last one."""

    def __init__(self, proof: Head | None = None) -> None:
        """`proof` is a place and hash that somebody noted earlier."""
        self.seq = 0
        self.hash = FIRST_HASH
        self._proof = proof

    def follow(self, entry: AdminLog) -> Broken | None:
        """Takes the next entry; returns what is wrong with it."""
        fault = self._fault(entry)
        if fault is not None:
            return Broken(fault, entry.seq, entry.id)
        self.seq, self.hash = entry.seq, entry.hash
        return None

    def end(self, head: Head) -> Broken | None:
        """Compares the last entry with the head, both read at one moment."""
        if (head.seq, head.hash) != (self.seq, self.hash):
            differs = head.seq != self.seq
            return Broken(Fault.HEAD, min(head.seq, self.seq) + differs, None)
        if self._proof is not None and self._proof.seq > self.seq:
            return Broken(Fault.PROOF, self._proof.seq, None)
        return None

    def _fault(self, entry: AdminLog) -> Fault | None:
        if entry.seq != self.seq + 1:
            return Fault.GAP
        if entry.prev_hash != self.hash:
            return Fault.LINK
        if not _is_whole(entry):
            return Fault.CONTENT
        proof = self._proof
        if proof is not None and proof.seq == entry.seq and not entry.hash.startswith(proof.hash):
            return Fault.PROOF
        return None


def hash_of(entry: AdminLog) -> bytes:
    """Returns the hash an entry must have; see the top of this module for the bytes."""
    target = b"\x00" if entry.target is None else b"\x01" + entry.target.bytes
    details = sorted((key.encode(), value.encode()) for key, value in entry.details.items())
    parts = [
        _DOMAIN,
        _SEQ.pack(entry.seq),
        entry.prev_hash,
        entry.id.bytes,
        _text(entry.actor.encode()),
        _text(entry.action.encode()),
        target,
        _SEQ.pack((entry.created_at - _EPOCH) // timedelta(microseconds=1)),
        _LENGTH.pack(len(details)),
        *(_text(part) for detail in details for part in detail),
    ]
    return hashlib.sha256(b"".join(parts)).digest()


def _is_whole(entry: AdminLog) -> bool:
    try:
        return entry.hash == hash_of(entry)
    except (AttributeError, TypeError, ValueError, OverflowError):
        # Not even of the right kinds: somebody took the table's constraints off first.
        return False


def _text(encoded: bytes) -> bytes:
    return _LENGTH.pack(len(encoded)) + encoded
