"""The keys that sign access tokens, as each replica keeps them in memory."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog

from chassis.clock import Clock
from chassis.errors import Refusal
from chassis.postgres import Database
from services.auth.domain.sessions import Session
from services.auth.domain.signing_keys import KeyPlan, signing_key
from services.auth.domain.users import User
from services.auth.keys import Signer, make_key, open_key, public_jwk
from services.auth.store import signing_keys
from services.auth.store.signing_keys import StoredKey

# As soon as a revocation, at the latest: a withdrawn key must neither sign nor be published.
REFRESH_SECONDS = 1.0
_log = structlog.get_logger()


class SigningKeys:
    """The published keys as one replica knows them; `run` follows what others rotate."""

    def __init__(self, database: Database, secret: bytes, issuer: str, clock: Clock) -> None:
        """`secret` is the 32 bytes the private halves are sealed with."""
        self._database = database
        self._secret = secret
        self._issuer = issuer
        self._clock = clock
        self._stored: Sequence[StoredKey] = []
        self._signers: Mapping[str, Signer] = {}
        self._loads = self._newest = 0
        self._wake = asyncio.Event()

    async def load(self) -> None:
        """Loads the keys; on an empty database whichever replica is first makes one."""
        self._loads += 1
        number = self._loads
        now = self._clock.now()
        async with self._database.connection() as conn:
            stored = await signing_keys.list_signing_keys(conn, now)
        if not stored:
            made = make_key(self._secret)
            async with self._database.transaction() as conn:
                await signing_keys.insert_signing_key(
                    conn, kid=made.kid, public_key=made.public_key, sealed=made.sealed, now=now
                )
                stored = await signing_keys.list_signing_keys(conn, now)
        # What was read before a withdrawal must not replace what was read after it.
        if number < self._newest:
            return
        self._newest = number
        known = self._signers
        self._signers = {
            key.plan.kid: known.get(key.plan.kid)
            or open_key(self._secret, key.plan.kid, key.sealed, self._issuer)
            for key in stored
        }
        self._stored = stored

    def make(self) -> StoredKey:
        """Makes a key that is not stored yet."""
        made = make_key(self._secret)
        return StoredKey(KeyPlan(made.kid, self._clock.now()), made.public_key, made.sealed)

    def sign(
        self, user: User, session: Session, *, token_id: str, now: datetime, expires: datetime
    ) -> str:
        """Returns an access token of the key whose time it is."""
        plan = signing_key([key.plan for key in self._stored], now)
        signer = self._signers[plan.kid]
        return signer.sign(user, session, token_id=token_id, now=now, expires=expires)

    def published(self) -> Sequence[dict[str, str]]:
        """Returns the public keys as JSON Web Keys, the newest first."""
        now = self._clock.now()
        return [
            public_jwk(key.plan.kid, key.public_key)
            for key in self._stored
            if key.plan.expires_at is None or key.plan.expires_at > now
        ]

    def wake(self) -> None:
        """Loads them again now."""
        self._wake.set()

    async def run(self) -> None:
        """Loads the keys every second until cancelled; what it has serves meanwhile."""
        while True:
            self._wake.clear()
            try:
                await self.load()
            except Refusal as refusal:
                _log.warning("signing keys not loaded", reason=refusal.reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._wake.wait()
