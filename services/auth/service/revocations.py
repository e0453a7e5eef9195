"""What was revoked, as one process follows it for everybody who watches."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from chassis.clock import Clock
from chassis.errors import Refusal
from chassis.postgres import Database
from chassis.revocations import Revocations
from services.auth.errors import WatchFellBehind
from services.auth.store import revocations

# Stamp to commit: waiting for a connection and the transaction together take less.
LATEST_COMMIT = timedelta(seconds=60)
# A watcher hears something so often, be it that nothing happened.
POLL_SECONDS = 1.0
# However often others wake it, a process reads no faster.
BREATH_SECONDS = 0.05
# Messages a watcher may leave unread.
BUFFER = 1000
# Sessions in one message: 400 kB, well below what gRPC's clients take by default.
PIECE = 10_000
_log = structlog.get_logger()


class Watcher:
    """One open stream: what it has not been given yet."""

    def __init__(self) -> None:
        self._waiting: deque[Revocations] = deque()
        self._news = asyncio.Event()
        self._over = False
        self._fell_behind = False

    def give(self, revoked: Revocations) -> None:
        """Adds a message; a watcher that leaves too many unread gets none at all."""
        if len(self._waiting) >= BUFFER:
            self._fell_behind = True
            self._waiting.clear()
        if not self._fell_behind:
            self._waiting.append(revoked)
        self._news.set()

    def end(self) -> None:
        self._over = True
        self._news.set()

    async def take(self) -> Revocations | None:
        """Returns the next message, None at the end; WatchFellBehind if some were dropped."""
        while True:
            if self._fell_behind:
                raise WatchFellBehind(retry_after=0.1)
            if self._waiting:
                return self._waiting.popleft()
            if self._over:
                return None
            self._news.clear()
            await self._news.wait()


class RevocationFeed:
    """
    Reads the tables once for all watchers of a process.

    What this process revoked is passed on at once; what others revoked when a
    wake-up comes, and every second in any case.
    """

    def __init__(self, database: Database, clock: Clock, access_token: timedelta) -> None:
        """`access_token` is the lifetime of a token: what was revoked earlier has expired."""
        self._database = database
        self._clock = clock
        self._access_token = access_token
        self._sessions: dict[UUID, datetime] = {}
        self._versions: dict[UUID, tuple[int, datetime]] = {}
        self._as_of: datetime | None = None
        self._watchers: set[Watcher] = set()
        self._wake = asyncio.Event()

    async def read(self, since: datetime | None) -> Revocations:
        """Asks the database what was revoked after `since`, at most one token lifetime back."""
        as_of, ended, versions = await self._read(since)
        return Revocations([i for i, _ in ended], [(i, v) for i, v, _ in versions], as_of)

    def publish(self, revoked: Revocations) -> None:
        """Passes on what this process has just committed."""
        now = self._clock.now()
        self._take(
            [(session_id, now) for session_id in revoked.sessions],
            [(user_id, version, now) for user_id, version in revoked.versions],
            beat=False,
        )

    async def watch(self, since: datetime | None) -> AsyncGenerator[Revocations, None]:
        """Yields all that was revoked after `since`, then whatever is, with the cursor."""
        if self._as_of is None:
            await self.poll()
        watcher = Watcher()
        # No await from here to the snapshot's end: nothing may come in between.
        snapshot = list(_pieces(*self._after(since), self._as_of))
        self._watchers.add(watcher)
        try:
            for piece in snapshot:
                yield piece
            while (revoked := await watcher.take()) is not None:
                yield revoked
        finally:
            self._watchers.discard(watcher)

    async def poll(self) -> None:
        """Reads what is new and passes it on, with the cursor even if nothing is."""
        as_of, ended, versions = await self._read(self._as_of)
        self._as_of = max(as_of, self._as_of or as_of)
        self._take(ended, versions, beat=True)
        self._forget(self._as_of - self._access_token)

    def wake(self) -> None:
        """Makes the next poll happen now."""
        self._wake.set()

    def close(self) -> None:
        """Ends every stream, so that its reader looks for another replica."""
        for watcher in self._watchers:
            watcher.end()

    async def run(self) -> None:
        """Polls until cancelled; while it cannot, watchers hear nothing and poll themselves."""
        while True:
            self._wake.clear()
            try:
                await self.poll()
            except Refusal as refusal:
                _log.warning("revocations not read", reason=refusal.reason)
            await asyncio.sleep(BREATH_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS - BREATH_SECONDS):
                    await self._wake.wait()

    async def _read(
        self, since: datetime | None
    ) -> tuple[datetime, Sequence[tuple[UUID, datetime]], Sequence[tuple[UUID, int, datetime]]]:
        # A row stamped before and committed after this answer is found by the next one.
        as_of = self._clock.now() - LATEST_COMMIT
        oldest = as_of - self._access_token
        since = max(since, oldest) if since else oldest
        async with self._database.connection() as conn:
            return (
                as_of,
                await revocations.ended_sessions(conn, since),
                await revocations.revoked_versions(conn, since),
            )

    def _take(
        self,
        ended: Sequence[tuple[UUID, datetime]],
        versions: Sequence[tuple[UUID, int, datetime]],
        *,
        beat: bool,
    ) -> None:
        new_sessions = [i for i, _ in ended if i not in self._sessions]
        new_versions = [(i, v) for i, v, _ in versions if v > self._versions.get(i, (0,))[0]]
        self._sessions |= {i: at for i, at in ended if i not in self._sessions}
        for user_id, version, at in versions:
            if version > self._versions.get(user_id, (0,))[0]:
                self._versions[user_id] = (version, at)
        if beat or new_sessions or new_versions:
            for piece in _pieces(new_sessions, new_versions, self._as_of):
                for watcher in self._watchers:
                    watcher.give(piece)

    def _after(self, since: datetime | None) -> tuple[list[UUID], list[tuple[UUID, int]]]:
        return (
            [i for i, at in self._sessions.items() if since is None or at > since],
            [(i, v) for i, (v, at) in self._versions.items() if since is None or at > since],
        )

    def _forget(self, before: datetime) -> None:
        self._sessions = {i: at for i, at in self._sessions.items() if at > before}
        self._versions = {i: known for i, known in self._versions.items() if known[1] > before}


def _pieces(
    ended: Sequence[UUID], versions: Sequence[tuple[UUID, int]], as_of: datetime | None
) -> Iterator[Revocations]:
    """Cuts a long list; only the last piece has the cursor."""
    while len(ended) > PIECE or len(versions) > PIECE:
        yield Revocations(ended[:PIECE], versions[:PIECE])
        ended, versions = ended[PIECE:], versions[PIECE:]
    yield Revocations(ended, versions, as_of)
