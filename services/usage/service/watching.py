"""
Balances as they change, for everybody who watches one.

Whoever writes an account announces it after the commit. This process reads what its
own subscribers watch at once and tells the other processes over Redis, where a
message is user ids and nothing else; a process listens while somebody watches there.
Every balance is read by one reader, one read after the other, so that none goes out
after a newer one. What no message told, and what begins or expires by itself, is
found by reading everything watched every few seconds: a lost message costs that long
and nothing else.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chassis.callers import Caller, Kind
from chassis.clock import Clock
from chassis.errors import Refusal
from chassis.postgres import Database
from services.usage.domain.accounts import Balance
from services.usage.errors import AccountNotOpen, TooManyWatchers
from services.usage.store import accounts

CHANNEL = "finity:balances"
# Everything watched is read so often, and so often while no process hears another.
REREAD_SECONDS = 5.0
REREAD_ALONE_SECONDS = 1.0
# Changes that come meanwhile are read, or told, together.
GATHER_SECONDS = 0.002
# The same where no other process listened to the message before.
GATHER_ALONE_SECONDS = 0.05
# After a failure, before the next try.
PAUSE_SECONDS = 0.5
RECONNECT_SECONDS = 1.0
PUBLISH_SECONDS = 0.25
# A balance that does not change is repeated, so that credentials are looked at again.
BEAT_SECONDS = 30.0
# Balances one statement reads.
BATCH = 500
MOST_WATCHERS = 2000
# A service watches for all its users, a user for itself.
MOST_BY_CALLER = {Kind.SERVICE: 1500, Kind.USER: 10}
RETRY_AFTER = 5.0
_ID = 16
_log = structlog.get_logger()


class Watcher:
    """One open stream: the newest balance, and whether it was taken."""

    def __init__(self) -> None:
        self.balance: Balance | None = None
        self._refusal: Refusal | None = None
        self._over = False
        self._news = asyncio.Event()

    def give(self, balance: Balance) -> None:
        """Replaces a balance nobody took yet; one that is not newer changes nothing."""
        known = self.balance
        if known is None or (balance.version >= known.version and balance != known):
            self.balance = balance
            self._news.set()

    def fail(self, refusal: Refusal) -> None:
        self._refusal = refusal
        self._news.set()

    def end(self) -> None:
        self._over = True
        self._news.set()

    async def take(self) -> Balance | None:
        """Returns the newest balance once it changes or a beat is over; None at the end."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._news.wait()
            self._news.clear()
            if self._refusal is not None:
                raise self._refusal
            if self._over:
                self._news.set()
                return None
            if self.balance is not None:
                return self.balance


class BalanceHub:
    """The watched balances of one process; its jobs must be running."""

    def __init__(self, database: Database, clock: Clock, redis: Redis | None) -> None:
        """`redis` may be absent or down at any time."""
        self._database = database
        self._clock = clock
        self._redis = redis
        # Marks our own messages, which tell us nothing.
        self._sender = os.urandom(_ID)
        self._watchers: dict[UUID, set[Watcher]] = {}
        self._callers: Counter[str] = Counter()
        self._stale: set[UUID] = set()
        self._to_tell: set[UUID] = set()
        self._read_now = asyncio.Event()
        self._tell_now = asyncio.Event()
        self._watched = asyncio.Event()
        self._hears = False

    def announce(self, user_ids: Collection[UUID]) -> None:
        """Says that these accounts changed; to be called after the commit, and cheap."""
        self._mark(user_ids)
        if self._redis is not None:
            self._to_tell.update(user_ids)
            self._tell_now.set()

    async def watch(self, user_id: UUID, caller: Caller) -> AsyncGenerator[Balance, None]:
        """
        Yields the balance, then the newest after each change, until the process stops.

        AccountNotOpen if there is none; TooManyWatchers beyond the bounds of process and caller.
        """
        if (
            self._callers.total() >= MOST_WATCHERS
            or self._callers[caller.key] >= MOST_BY_CALLER[caller.kind]
        ):
            raise TooManyWatchers(retry_after=RETRY_AFTER)
        watcher = Watcher()
        self._callers[caller.key] += 1
        self._watchers.setdefault(user_id, set()).add(watcher)
        self._watched.set()
        self._mark([user_id])
        try:
            while (balance := await watcher.take()) is not None:
                yield balance
        finally:
            self._leave(user_id, watcher, caller)

    def close(self) -> None:
        """Ends every stream, so that its reader looks for another replica."""
        for watcher in self._everybody():
            watcher.end()

    def jobs(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What keeps the balances fresh, to be run in the background."""
        redis = self._redis
        others = [partial(self.tell, redis), partial(self.hear, redis)] if redis else []
        return [self.read, *others]

    async def read(self) -> None:
        """Reads what changed as soon as it did, and everything now and then, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._read_now.wait()
            self._read_now.clear()
            now = loop.time()
            every = REREAD_SECONDS if self._hears else REREAD_ALONE_SECONDS
            if now >= due:
                self._stale.update(self._watchers)
                due = now + every
            # Sooner than was planned if nobody is heard any more.
            due = min(due, now + every)
            await self._read_stale()
            await asyncio.sleep(GATHER_SECONDS)

    async def tell(self, redis: Redis) -> None:
        """Tells the other processes which accounts this one changed, until cancelled."""
        others = 0
        while True:
            await self._tell_now.wait()
            await asyncio.sleep(GATHER_SECONDS if others else GATHER_ALONE_SECONDS)
            self._tell_now.clear()
            users, self._to_tell = self._to_tell, set()
            message = self._sender + b"".join(user_id.bytes for user_id in users)
            try:
                async with asyncio.timeout(PUBLISH_SECONDS):
                    others = await redis.publish(CHANNEL, message) - self._hears
            except (RedisError, OSError, TimeoutError):
                # The others read by themselves.
                await asyncio.sleep(PAUSE_SECONDS)

    async def hear(self, redis: Redis) -> None:
        """Reads what other processes say they changed, until cancelled."""
        while True:
            await self._watched.wait()
            try:
                await self._hear_while_watched(redis)
                continue
            except (RedisError, OSError, TimeoutError, EOFError, ValueError) as error:
                _log.warning("redis is gone; balances are polled", error=type(error).__name__)
            finally:
                self._hears = False
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _hear_while_watched(self, redis: Redis) -> None:
        async with redis.pubsub() as channel:
            await channel.subscribe(CHANNEL)
            async for message in channel.listen():
                if message["type"] == "message":
                    self._heard(message["data"])
                else:
                    self._hears = True
                    # Whatever was said before has not been heard.
                    self._mark(list(self._watchers))
                if not self._watchers:
                    self._watched.clear()
                    return

    def _heard(self, message: bytes) -> None:
        sender, ids = message[:_ID], message[_ID:]
        if sender != self._sender:
            self._mark([UUID(bytes=ids[at : at + _ID]) for at in range(0, len(ids), _ID)])

    def _mark(self, user_ids: Collection[UUID]) -> None:
        watched = [user_id for user_id in user_ids if user_id in self._watchers]
        if watched:
            self._stale.update(watched)
            self._read_now.set()

    def _leave(self, user_id: UUID, watcher: Watcher, caller: Caller) -> None:
        self._watchers[user_id].discard(watcher)
        if not self._watchers[user_id]:
            del self._watchers[user_id]
        self._callers[caller.key] -= 1
        if not self._callers[caller.key]:
            del self._callers[caller.key]

    def _everybody(self) -> list[Watcher]:
        return [watcher for watchers in self._watchers.values() for watcher in watchers]

    async def _read_stale(self) -> None:
        users = [user_id for user_id in self._stale if user_id in self._watchers]
        self._stale.clear()
        for start in range(0, len(users), BATCH):
            batch = users[start : start + BATCH]
            try:
                balances = await self._balances(batch)
            except Refusal as refusal:
                _log.warning("balances not read", reason=refusal.reason)
                self._refuse_new(batch, refusal)
                await asyncio.sleep(PAUSE_SECONDS)
                self._mark(batch)
            else:
                self._pass_on(batch, balances)

    async def _balances(self, users: Sequence[UUID]) -> dict[UUID, Balance]:
        now = self._clock.now()
        async with self._database.connection() as conn:
            found = await accounts.get_balances(conn, users)
        due = [b.user_id for b in found.values() if b.due_at is not None and b.due_at <= now]
        if due:
            async with self._database.transaction() as conn:
                books, _ = await accounts.lock_free_books(conn, due, now)
                await accounts.write_books(conn, books.values(), now)
            found |= {user_id: book.balance() for user_id, book in books.items()}
            self.announce(list(books))
        return found

    def _pass_on(self, users: Sequence[UUID], balances: dict[UUID, Balance]) -> None:
        for user_id in users:
            for watcher in self._watchers.get(user_id, ()):
                if user_id in balances:
                    watcher.give(balances[user_id])
                else:
                    watcher.fail(AccountNotOpen())

    def _refuse_new(self, users: Sequence[UUID], refusal: Refusal) -> None:
        for user_id in users:
            for watcher in self._watchers.get(user_id, ()):
                if watcher.balance is None:
                    watcher.fail(refusal)
