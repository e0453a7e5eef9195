"""
Access tokens as every service verifies them: in its own process.

Signatures are checked against auth's public keys (RFC 7517, RFC 8037), verified
tokens are kept in an LRU, and every use asks the revocation list.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import jwt
import structlog

from chassis.callers import Caller, Kind
from chassis.clock import Clock
from chassis.errors import Refusal
from chassis.refusals import CredentialsInvalid, PeerUnavailable, TokenExpired, TokenRevoked
from chassis.revocations import RevocationList, RevocationSource

AUDIENCE = "finity"
ALGORITHM = "EdDSA"
CACHED_TOKENS = 20_000
# Unknown key ids cause one request for keys in so many seconds, and wait for it.
KEY_RELOAD_SECONDS = 1.0
# A key that auth withdrew verifies nothing after this.
KEY_LIFE_SECONDS = 600.0
# Lifetimes are judged by the Clock, so that a test can set it.
_DECODE_OPTIONS: jwt.types.Options = {
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "require": ["exp", "iss", "aud", "sub"],
}
_log = structlog.get_logger()


class TokenAuthority(RevocationSource, Protocol):
    """Where keys and revocations come from: the auth service, seen from here."""

    async def signing_keys(self) -> Sequence[dict[str, str]]:
        """Returns the public keys as JSON Web Keys."""
        ...


@dataclass(frozen=True, slots=True)
class Verified:
    """A good token; times are in seconds since the epoch."""

    caller: Caller
    kid: str
    version: int
    expires: float
    issued: float
    amr: tuple[str, ...]
    """Authentication methods (RFC 8176)."""
    token_id: str
    """The "jti" claim, "" if there is none."""


class KeyRing:
    """
    Auth's public keys, loaded again when an unknown one is asked for and when they are old.

    Also when auth says that its keys are others: one that was withdrawn must not wait
    until these are old.
    """

    def __init__(self, authority: TokenAuthority) -> None:
        self._authority = authority
        self._keys: dict[str, jwt.PyJWK] = {}
        self._version = ""
        self._loaded = float("-inf")
        self._loading: asyncio.Task[None] | None = None

    def knows(self, kid: str) -> bool:
        """Tells whether the key was published when the keys were last loaded, not long ago."""
        return kid in self._keys and time.monotonic() - self._loaded < KEY_LIFE_SECONDS

    async def get(self, kid: str) -> jwt.PyJWK:
        """Returns a key; CredentialsInvalid if auth has none of this id."""
        if not self.knows(kid):
            # Shielded: the caller that gives up must not take the others' answer with it.
            await asyncio.shield(self._start())
        if kid not in self._keys:
            raise CredentialsInvalid
        return self._keys[kid]

    def told(self, version: str) -> None:
        """Hears which keys auth publishes; loads them beside the calls if they are others."""
        # A replica of auth that is behind may answer with the old ones: then the next word differs.
        if self._keys and version not in ("", self._version):
            self._start()

    def _start(self) -> asyncio.Task[None]:
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load())
            # Nobody may be waiting for it, and what is wrong is in the log.
            self._loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._loading

    async def _load(self) -> None:
        await asyncio.sleep(max(0.0, self._loaded + KEY_RELOAD_SECONDS - time.monotonic()))
        try:
            keys = await self._authority.signing_keys()
        except Refusal as refusal:
            _log.warning("signing keys not loaded", reason=refusal.reason)
            raise PeerUnavailable from refusal
        self._keys = {key["kid"]: jwt.PyJWK(key) for key in keys}
        self._version = keys_version(self._keys)
        self._loaded = time.monotonic()


def keys_version(kids: Iterable[str]) -> str:
    """Returns a name for a set of keys, by their ids."""
    return hashlib.sha256(" ".join(sorted(kids)).encode()).hexdigest()[:16]


class TokenVerifier:
    """Verifies access tokens; `run` keeps its revocations fresh."""

    def __init__(self, authority: TokenAuthority, issuer: str, clock: Clock) -> None:
        self._keys = KeyRing(authority)
        self._revocations = RevocationList(authority, self._keys.told)
        self._issuer = issuer
        self._clock = clock
        self._cache: OrderedDict[str, Verified] = OrderedDict()
        self.run = self._revocations.run
        self.revoke = self._revocations.add
        self.wake = self._revocations.wake

    async def verify(self, token: str) -> Caller:
        """Returns the user of a good token; refuses any other by reason."""
        return (await self.inspect(token)).caller

    async def inspect(self, token: str) -> Verified:
        """Returns what a good token says; refuses any other by reason."""
        verified = self._cache.get(token)
        if verified is None or not self._keys.knows(verified.kid):
            verified = await self._read(token)
            self._cache[token] = verified
            if len(self._cache) > CACHED_TOKENS:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(token)
        if verified.expires <= self._clock.now().timestamp():
            self._cache.pop(token, None)
            raise TokenExpired
        if not await self._revocations.ready():
            raise PeerUnavailable
        caller = verified.caller
        if self._revocations.holds(caller.session_id, caller.user_id, verified.version):
            raise TokenRevoked
        return verified

    async def _read(self, token: str) -> Verified:
        try:
            kid = str(jwt.get_unverified_header(token)["kid"])
            key = await self._keys.get(kid)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=self._issuer,
                options=_DECODE_OPTIONS,
            )
            caller = Caller(
                Kind.USER,
                user_id=UUID(claims["sub"]),
                session_id=UUID(claims["sid"]),
                role=str(claims["role"]),
                acr=str(claims.get("acr", "")),
                auth_time=_time(claims.get("auth_time")),
                actor=UUID(claims["act"]["sub"]) if "act" in claims else None,
            )
            return Verified(
                caller,
                kid,
                int(claims["ver"]),
                expires=float(claims["exp"]),
                issued=float(claims.get("iat", 0)),
                amr=tuple(map(str, claims.get("amr", ()))),
                token_id=str(claims.get("jti", "")),
            )
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise CredentialsInvalid from error


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
