"""A session, how it was opened, and the state of its refresh token."""

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

_REFRESH_VERSION = 1
_REFRESH_BODY = struct.Struct(">B16sI")
_MAC_BYTES = 16
# How many rotations a token may be behind in the grace. One is a lost answer or a second tab, two a
# tab whose answer was lost while another one went on; nobody in good faith is further behind.
GRACE_LAG = 2
# How long a proof of who is there serves for sensitive actions.
STEP_UP_AGE = timedelta(minutes=10)


class EndReason(StrEnum):
    """Why a session ended; the values of sessions.end_reason."""

    LOGOUT = "logout"
    REPLAY = "refresh_token_replayed"
    EXPIRED = "expired"
    IDLE = "idle"
    REVOKED = "revoked_by_user"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105
    PASSWORD_RESET = "password_reset"  # noqa: S105
    EMAIL_CHANGED = "email_changed"
    MFA_CHANGED = "mfa_changed"
    BANNED = "banned"
    ADMIN = "revoked_by_admin"
    DELETED = "account_deleted"


class Acr(StrEnum):
    """How strongly somebody is authenticated; the "acr" claim (NIST SP 800-63B's levels)."""

    AAL1 = "aal1"
    """One factor."""
    AAL2 = "aal2"
    """Two factors, or a passkey that verified its user."""


@dataclass(frozen=True, slots=True)
class Means:
    """How and from where a session is opened."""

    amr: tuple[str, ...]
    """Authentication methods (RFC 8176), e.g. ("pwd", "otp")."""
    acr: Acr = Acr.AAL1
    device: str = ""
    """What the client calls itself; shown in the list of sessions."""
    address: str | None = None
    """IP address of the client, None if unknown."""
    authenticated_at: datetime | None = None
    """When the user proved who it is, if that was not now but in the session that vouches."""


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
    amr: tuple[str, ...] = ("pwd",)
    acr: Acr = Acr.AAL1
    authenticated_at: datetime | None = None
    """When the user last proved who it is; the "auth_time" claim. None means at created_at."""
    impersonated_by: UUID | None = None
    """The administrator who acts as the user in it."""

    @property
    def auth_time(self) -> datetime:
        return self.authenticated_at or self.created_at


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """How long sessions and their tokens live."""

    access_token: timedelta
    idle: timedelta
    absolute: timedelta
    grace: timedelta
    """After a rotation, how long the two tokens before the current one get the successor."""
    reuse: timedelta
    """How long the token just before the current one gets it; zero leaves only the grace."""
    key_delay: timedelta = timedelta(minutes=10)
    """How long a new signing key is published before it signs."""


class Verdict(StrEnum):
    """What to do with a refresh token that is not the current one."""

    SUCCESSOR = "successor"
    REPLAYED = "replayed"
    ENDED = "ended"
    UNKNOWN = "unknown"


def over(session: Session, policy: SessionPolicy, now: datetime) -> str | None:
    """Returns why a session is over, or None while it lives."""
    if session.ended_at is not None:
        return session.end_reason
    if session.expires_at <= now:
        return EndReason.EXPIRED
    if session.refreshed_at + policy.idle <= now:
        return EndReason.IDLE
    return None


def step_up_needed(auth_time: datetime, acr: str, *, mfa: bool, now: datetime) -> bool:
    """Tells whether a sensitive action needs a new proof of who is there first (RFC 9470)."""
    return now - auth_time > STEP_UP_AGE or (mfa and acr != Acr.AAL2)


def judge_reuse(session: Session, presented: int, policy: SessionPolicy, now: datetime) -> Verdict:
    """
    Judges a refresh token that is not, or is no longer, the current one (RFC 9700 section 4.14.2).

    A lost answer or a second tab must not log anybody out; a stolen token must.
    """
    if over(session, policy, now) is not None:
        return Verdict.ENDED
    if presented > session.counter:
        return Verdict.UNKNOWN
    since, lag = now - session.refreshed_at, session.counter - presented
    if lag == 0 or (lag <= GRACE_LAG and since <= policy.grace):
        return Verdict.SUCCESSOR
    if lag == 1 and since <= policy.reuse:
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
