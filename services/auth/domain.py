"""The rules of accounts and sessions; no input, no output, standard library only."""

import base64
import binascii
import hashlib
import hmac
import struct
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

_REFRESH_VERSION = 1
_REFRESH_BODY = struct.Struct(">B16sI")
_MAC_BYTES = 16


class Role(StrEnum):
    """What a user may do; the values of users.role."""

    FREE = "free"
    PRO = "pro"
    ADMIN = "admin"


class EndReason(StrEnum):
    """Why a session ended; the values of sessions.end_reason."""

    LOGOUT = "logout"
    REPLAY = "refresh_token_replayed"
    EXPIRED = "expired"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class User:
    """An account."""

    id: UUID
    email: str
    role: Role
    token_version: int
    created_at: datetime
    last_login: datetime | None


@dataclass(frozen=True, slots=True)
class Session:
    """A session with the state of its refresh token."""

    id: UUID
    user_id: UUID
    counter: int
    created_at: datetime
    expires_at: datetime
    refreshed_at: datetime
    ended_at: datetime | None = None
    end_reason: str | None = None


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """How long sessions and their tokens live."""

    access_token: timedelta
    idle: timedelta
    absolute: timedelta
    grace: timedelta
    """After a rotation, how long any older token of the session gets the successor."""
    reuse: timedelta
    """How long the token just before the current one gets it; zero leaves only the grace."""


class Verdict(StrEnum):
    """What to do with a refresh token that is not the current one."""

    SUCCESSOR = "successor"
    REPLAYED = "replayed"
    ENDED = "ended"
    UNKNOWN = "unknown"


def normalise_email(text: str) -> str:
    """Returns the one form of an address: trimmed, NFC, lower case."""
    # Some letters compose only once they are small.
    return unicodedata.normalize("NFC", text.strip().lower())


def over(session: Session, policy: SessionPolicy, now: datetime) -> str | None:
    """Returns why a session is over, or None while it lives."""
    if session.ended_at is not None:
        return session.end_reason
    if session.expires_at <= now:
        return EndReason.EXPIRED
    if session.refreshed_at + policy.idle <= now:
        return EndReason.IDLE
    return None


def judge_reuse(session: Session, presented: int, policy: SessionPolicy, now: datetime) -> Verdict:
    """
    Judges a refresh token that is not, or is no longer, the current one (RFC 9700 section 4.14.2).

    A lost answer or a second tab must not log anybody out; a stolen token must.
    """
    if over(session, policy, now) is not None:
        return Verdict.ENDED
    if presented > session.counter:
        return Verdict.UNKNOWN
    since = now - session.refreshed_at
    if presented == session.counter or since <= policy.grace:
        return Verdict.SUCCESSOR
    if presented == session.counter - 1 and since <= policy.reuse:
        return Verdict.SUCCESSOR
    return Verdict.REPLAYED


def write_refresh_token(key: bytes, session_id: UUID, counter: int) -> str:
    """Returns the refresh token of a session's counter: the same bytes every time."""
    body = _REFRESH_BODY.pack(_REFRESH_VERSION, session_id.bytes, counter)
    return _spell(body + _mac(key, body))


def read_refresh_token(key: bytes, token: str) -> tuple[UUID, int] | None:
    """Returns the session and counter of a refresh token, or None if this key did not sign it."""
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except (binascii.Error, UnicodeEncodeError):
        return None
    if _spell(raw) != token:
        return None
    body, mac = raw[: _REFRESH_BODY.size], raw[_REFRESH_BODY.size :]
    if len(body) != _REFRESH_BODY.size or not hmac.compare_digest(mac, _mac(key, body)):
        return None
    version, session_id, counter = _REFRESH_BODY.unpack(body)
    return (UUID(bytes=session_id), counter) if version == _REFRESH_VERSION else None


def digest(token: str) -> str:
    """Returns what is stored of a token: its SHA-256 in hex. Tokens have 128 bits or more."""
    return hashlib.sha256(token.encode()).hexdigest()


def _spell(raw: bytes) -> str:
    """Returns the one spelling of a token; base64 alone would read several."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)[:_MAC_BYTES]
