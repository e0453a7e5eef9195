"""
What must be refused although its lifetime is not over, as every process keeps it.

Auth streams it where the source can. When the stream is broken or silent the list
is polled, every few seconds and whenever a message on Redis wakes it; a process
that can do neither stops trusting access tokens. Nothing is ever lost: stream and
poll go on from the same cursor.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Protocol, runtime_checkable
from uuid import UUID

import structlog
from redis.asyncio import Redis

from chassis.background import background
from chassis.errors import Code, Refusal
from chassis.wakeups import listen

POLL_SECONDS = 4.0
# Auth says something every second; a stream silent for longer is dead.
SILENCE_SECONDS = 4.0
# Between a stream that ended and the next one.
PAUSE_SECONDS = 0.2
# A list older than this says nothing about the tokens of today.
STALE_SECONDS = 60.0
# No access token lives longer, so nobody can present one that was revoked before.
LONGEST_TOKEN_SECONDS = 3700.0
_OUR_FAULT = {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED}
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Revocations:
    """Sessions and tokens that ended."""

    sessions: Sequence[UUID]
    versions: Sequence[tuple[UUID, int]]
    """User and the least token version still good."""
    as_of: datetime | None = None
    """By auth's clock: everything revoked before is in this answer or an earlier one."""
    keys: str = ""
    """Which keys auth publishes, as tokens.keys_version has it; "" if it does not say."""


class RevocationSource(Protocol):
    """Where revocations come from: the auth service, seen from here."""

    async def revocations(self, since: datetime | None) -> Revocations:
        """Returns what was revoked after `since`, or everything that still matters."""
        ...


@runtime_checkable
class StreamingSource(RevocationSource, Protocol):
    """A source that also tells of revocations as they happen."""

    def watch(self, since: datetime | None) -> AsyncGenerator[Revocations, None]:
        """Yields what `revocations` returns, then whatever is new; something every second."""
        ...


class RevocationList:
    """The list of one process; `run` keeps it fresh."""

    def __init__(
        self, source: RevocationSource, keys: Callable[[str], None] = lambda _: None
    ) -> None:
        """`keys` is told which keys auth publishes, whenever auth says."""
        self._source = source
        self._keys = keys
        # Both in the order of arrival, with the time of it, so that the oldest can go.
        self._sessions: dict[UUID, float] = {}
        self._versions: dict[UUID, tuple[int, float]] = {}
        self._since: datetime | None = None
        self._polled = float("-inf")
        self._wake = asyncio.Event()

    def add(self, revoked: Revocations) -> None:
        """Refuses the named sessions and versions from now on in this process."""
        now = time.monotonic()
        for session_id in revoked.sessions:
            self._sessions.setdefault(session_id, now)
        for user_id, version in revoked.versions:
            known = self._versions.pop(user_id, (0, now))
            self._versions[user_id] = (max(version, known[0]), now)

    def holds(self, session_id: UUID | None, user_id: UUID | None, version: int) -> bool:
        """Tells whether a token with these claims was revoked."""
        if session_id in self._sessions:
            return True
        least = self._versions.get(user_id) if user_id else None
        return least is not None and version < least[0]

    async def ready(self) -> bool:
        """Tells whether the list can be believed; asks once when it never was loaded."""
        if self._polled == float("-inf"):
            await self.poll()
        return time.monotonic() - self._polled < STALE_SECONDS

    def wake(self) -> None:
        """Makes the next poll happen now."""
        self._wake.set()

    async def run(self, redis: Redis | None) -> None:
        """Follows auth until cancelled; `redis` may be absent or down at any time."""
        async with background(*([partial(listen, redis, self.wake)] if redis else ())):
            while True:
                self._wake.clear()
                await self.poll()
                pause = PAUSE_SECONDS if await self._follow() else POLL_SECONDS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()

    async def poll(self) -> None:
        """Asks for what is new; a refusal is logged and leaves the list as it is."""
        started = time.monotonic()
        try:
            revoked = await self._source.revocations(self._since)
        except Refusal as refusal:
            self._complain(refusal)
            return
        self._take(revoked)
        self._polled = started

    async def _follow(self) -> bool:
        """Reads auth's stream while it lives; returns whether it ever did."""
        if not isinstance(self._source, StreamingSource):
            return False
        followed, why = False, "ended"
        try:
            async with contextlib.aclosing(self._source.watch(self._since)) as messages:
                while True:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        revoked = await anext(messages)
                    self._take(revoked)
                    if revoked.as_of is not None:
                        self._polled = time.monotonic()
                    followed = True
        except StopAsyncIteration:
            pass
        except TimeoutError:
            why = "silent"
        except Refusal as refusal:
            why = refusal.reason
        if followed:
            _log.info("revocations are polled until auth streams them again", stream=why)
        return followed

    def _take(self, revoked: Revocations) -> None:
        self.add(revoked)
        self._keys(revoked.keys)
        self._since = revoked.as_of or self._since
        self._forget(time.monotonic() - LONGEST_TOKEN_SECONDS)

    def _forget(self, before: float) -> None:
        while self._sessions and next(iter(self._sessions.values())) < before:
            self._sessions.pop(next(iter(self._sessions)))
        while self._versions and next(iter(self._versions.values()))[1] < before:
            self._versions.pop(next(iter(self._versions)))

    def _complain(self, refusal: Refusal) -> None:
        fields = {"reason": refusal.reason, "domain": refusal.domain}
        if refusal.code in _OUR_FAULT:
            _log.error(
                "auth refuses our FINITY_SERVICE_KEY; user tokens are refused here", **fields
            )
        elif self._since is None:
            # At a common start auth may be up a moment later.
            _log.info("revocations not polled yet", **fields)
        else:
            _log.warning("revocations not polled", **fields)
