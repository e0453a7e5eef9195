"""Sessions as their user sees them in a list, and how each one ended."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.auth.domain.sessions import Session, SessionPolicy, over

SYSTEM = "system"


class Ender(StrEnum):
    """The kinds of caller that end a session."""

    USER = "user"
    ADMIN = "admin"
    SERVICE = "service"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Replay:
    """An old refresh token that came back (RFC 9700 section 4.14.2)."""

    seen: int
    expected: int
    address: str | None


@dataclass(frozen=True, slots=True)
class ListedSession:
    """A session with what its row says beside."""

    session: Session
    device: str
    address: str | None
    last_seen_at: datetime
    ended_by: str | None = None
    """Key of the caller, e.g. "user:0192…"; None while it lives or if nobody ended it."""
    replay: Replay | None = None


@dataclass(frozen=True, slots=True)
class End:
    """When, why and by whom a session ended."""

    at: datetime
    reason: str
    by: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A session as it is at some moment."""

    listed: ListedSession
    idle_end: datetime
    """When it ends if it is not refreshed before."""
    end: End | None
    """None while it lives."""


def show(listed: ListedSession, policy: SessionPolicy, now: datetime) -> Shown:
    """Returns a session as it is now; one that lapsed ended when it did, whoever noticed when."""
    session = listed.session
    idle_end = min(session.refreshed_at + policy.idle, session.expires_at)
    reason = over(session, policy, now)
    if reason is None:
        return Shown(listed, idle_end, None)
    if session.ended_at is not None:
        return Shown(listed, idle_end, End(session.ended_at, reason, listed.ended_by or SYSTEM))
    return Shown(listed, idle_end, End(idle_end, reason, SYSTEM))


def ender_of(by: str, owner: UUID) -> Ender:
    """Tells what kind of caller a caller's key is, seen from the owner of the session."""
    kind, _, name = by.partition(":")
    if kind == "service":
        return Ender.SERVICE
    if kind == "user":
        return Ender.USER if name in ("", str(owner)) else Ender.ADMIN
    return Ender.SYSTEM
