"""The keys and revocations that token verifiers load, here and in every other service."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from chassis.clock import Clock
from chassis.postgres import Database
from chassis.revocations import Revocations
from services.auth.keys import Signer, make_key, open_key, public_jwk
from services.auth.store import sessions, signing_keys, users

PUBLISHED_FOR = timedelta(seconds=5)
# Stamp to commit: waiting for a connection and the transaction together take less.
LATEST_COMMIT = timedelta(seconds=60)


async def open_signer(database: Database, secret: bytes, issuer: str, clock: Clock) -> Signer:
    """Opens the signing key; on an empty database whichever replica is first makes it."""
    key = make_key(secret)
    async with database.transaction() as conn:
        await signing_keys.insert_signing_key(
            conn, kid=key.kid, public_key=key.public_key, sealed=key.sealed, now=clock.now()
        )
        kid, sealed = await signing_keys.get_signing_key(conn)
    return open_key(secret, kid, sealed, issuer)


class Authority:
    """The keys and revocations that token verifiers load, here and in every other service."""

    def __init__(self, database: Database, clock: Clock, access_token: timedelta) -> None:
        """`access_token` is the lifetime of a token: what was revoked earlier has expired."""
        self._database = database
        self._clock = clock
        self._access_token = access_token
        self._published: tuple[datetime, list[dict[str, str]]] | None = None

    async def signing_keys(self) -> Sequence[dict[str, str]]:
        """Returns the public keys as JSON Web Keys, the newest first."""
        now = self._clock.now()
        # The method is public: it must not be a way to keep the database busy.
        if self._published is None or now - self._published[0] > PUBLISHED_FOR:
            async with self._database.connection() as conn:
                keys = await signing_keys.list_public_keys(conn, now)
            self._published = now, [public_jwk(kid, public_key) for kid, public_key in keys]
        return self._published[1]

    async def revocations(self, since: datetime | None) -> Revocations:
        """Returns what was revoked after `since`, at most one access token lifetime back."""
        # A row stamped before and committed after this answer is found by the next one.
        as_of = self._clock.now() - LATEST_COMMIT
        oldest = as_of - self._access_token
        since = max(since, oldest) if since else oldest
        async with self._database.connection() as conn:
            return Revocations(
                await sessions.ended_sessions(conn, since),
                await users.revoked_versions(conn, since),
                as_of,
            )
