"""The keys and revocations that token verifiers load, here and in every other service."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from redis.asyncio import Redis

from chassis.clock import Clock
from chassis.postgres import Database
from chassis.revocations import Revocations
from chassis.tokens import TokenVerifier, keys_version
from chassis.wakeups import announce, listen
from services.auth.service.revocations import RevocationFeed
from services.auth.service.signing_keys import SigningKeys


class Authority:
    """What one replica tells verifiers; nothing it answers strangers costs a query."""

    def __init__(
        self, database: Database, clock: Clock, access_token: timedelta, keys: SigningKeys
    ) -> None:
        """`access_token` is the lifetime of a token."""
        self._keys = keys
        self.feed = RevocationFeed(database, clock, access_token)

    async def signing_keys(self) -> Sequence[dict[str, str]]:
        """Returns the public keys as JSON Web Keys, the newest first."""
        return self._keys.published()

    async def revocations(self, since: datetime | None) -> Revocations:
        """Returns what was revoked after `since`, at most one access token lifetime back."""
        return self._with_keys(await self.feed.read(since))

    async def watch(self, since: datetime | None) -> AsyncGenerator[Revocations, None]:
        """Yields the same, and then whatever is revoked."""
        async with contextlib.aclosing(self.feed.watch(since)) as watched:
            async for revoked in watched:
                yield self._with_keys(revoked)

    async def announce(self, redis: Redis, verifier: TokenVerifier, revoked: Revocations) -> None:
        """Tells every process what this one has just committed, and this one first."""
        verifier.revoke(revoked)
        self.feed.publish(revoked)
        await announce(redis)

    def jobs(self, redis: Redis) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What follows the other replicas, to be run in the background."""
        return [self._keys.run, self.feed.run, partial(listen, redis, self._wake)]

    def _with_keys(self, revoked: Revocations) -> Revocations:
        kids = [key["kid"] for key in self._keys.published()]
        return replace(revoked, keys=keys_version(kids))

    def _wake(self) -> None:
        self._keys.wake()
        self.feed.wake()
