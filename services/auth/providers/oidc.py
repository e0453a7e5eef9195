"""
Any OpenID Connect provider: discovery, the code flow with PKCE, and its ID tokens.

Algorithms are RS256, ES256 and EdDSA: never "none", never a shared secret. Keys are
kept and loaded again when a token names one that is not among them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, quote_plus, urlencode, urlsplit, urlunsplit

import jwt
import structlog

from chassis.clock import Clock
from services.auth.domain.oauth import (
    FlowSecrets,
    Proof,
    Provider,
    claims_fault,
    is_loopback,
    is_secure,
)
from services.auth.errors import OAuthCodeInvalid, OAuthIdTokenInvalid, OAuthProviderUnavailable
from services.auth.providers.http import RETRY_SECONDS, Web, unavailable

T = TypeVar("T")
METADATA_LIFE = timedelta(hours=1)
KEYS_LIFE = timedelta(minutes=10)
# Tokens that name unknown keys cause one request for keys in so long a time.
RELOAD = timedelta(seconds=30)
RETRY = timedelta(seconds=RETRY_SECONDS)
# Algorithm → type and curve of its keys (RFC 7518, RFC 8037).
ALGORITHMS = {"RS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}
# Signature, issuer and audience are PyJWT's; the rest is domain.oauth's, by the Clock.
_DECODE_OPTIONS: jwt.types.Options = {
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "enforce_minimum_key_length": True,
    "require": ["iss", "aud", "sub", "exp", "iat"],
}
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a provider says of itself (OpenID Connect Discovery section 3)."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str
    """Empty if there is none."""
    secret_in_form: bool
    """Whether the token endpoint takes the client's secret in the form alone."""
    announces_issuer: bool


class Kept(Generic[T]):
    """A document of a provider, loaded when first asked for and again when it is old."""

    def __init__(self, load: Callable[[], Awaitable[T]], clock: Clock, life: timedelta) -> None:
        self._load = load
        self._clock = clock
        self._life = life
        self._value: tuple[T, datetime] | None = None
        self._failed: datetime | None = None
        self._lock = asyncio.Lock()

    async def get(self, *, oldest: timedelta | None = None) -> T:
        """
        Returns the document, at most `oldest` old.

        A failure answers everybody for 5 s, so that the method that asks, which is
        public, is no way to make us hammer a provider that is down.
        """
        async with self._lock:
            now = self._clock.now()
            if self._value and now - self._value[1] <= (oldest or self._life):
                return self._value[0]
            if self._failed and now - self._failed <= RETRY:
                raise OAuthProviderUnavailable(retry_after=RETRY_SECONDS)
            try:
                loaded = await self._load()
            except OAuthProviderUnavailable:
                self._failed = now
                raise
            self._value, self._failed = (loaded, now), None
            return loaded


class OpenIdProvider:
    """One issuer."""

    def __init__(self, provider: Provider, web: Web, clock: Clock) -> None:
        self.provider = provider
        self._web = web
        self._clock = clock
        self._host = urlsplit(provider.issuer).hostname or ""
        self._metadata = Kept(self._discover, clock, METADATA_LIFE)
        self._keys = Kept(self._load_keys, clock, KEYS_LIFE)

    async def announces_issuer(self) -> bool:
        return (await self._metadata.get()).announces_issuer

    async def authorization_url(self, redirect_uri: str, secrets: FlowSecrets) -> str:
        """Returns where to send the browser; a query of the provider's own stays."""
        parts = urlsplit((await self._metadata.get()).authorization_endpoint)
        query = [
            *parse_qsl(parts.query, keep_blank_values=True),
            ("response_type", "code"),
            ("client_id", self.provider.client_id),
            ("redirect_uri", redirect_uri),
            ("scope", " ".join(self.provider.scopes)),
            ("state", secrets.state),
            ("nonce", secrets.nonce),
            ("code_challenge", secrets.challenge),
            ("code_challenge_method", "S256"),
        ]
        return urlunsplit(parts._replace(query=urlencode(query)))

    async def prove(self, code: str, redirect_uri: str, secrets: FlowSecrets) -> Proof:
        """
        Exchanges a code for who somebody is.

        OAuthCodeInvalid, OAuthIdTokenInvalid, OAuthProviderUnavailable.
        """
        tokens = await self._exchange(code, redirect_uri, secrets)
        claims = await self._verified(tokens.get("id_token"), secrets.nonce)
        subject = claims["sub"]
        if "email" not in claims:
            claims |= await self._userinfo(tokens.get("access_token"), subject)
        email, verified = claims.get("email"), claims.get("email_verified")
        return Proof(
            self.provider.name,
            subject,
            email if isinstance(email, str) else "",
            # Some providers write the boolean as a string.
            verified is True or verified == "true",
        )

    async def _exchange(self, code: str, redirect_uri: str, secrets: FlowSecrets) -> dict[str, Any]:
        metadata, provider = await self._metadata.get(), self.provider
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": secrets.verifier,
        }
        basic = None
        if provider.client_secret and not metadata.secret_in_form:
            # RFC 6749 section 2.3.1: both are form-encoded first.
            basic = quote_plus(provider.client_id), quote_plus(provider.client_secret)
        else:
            form["client_id"] = provider.client_id
            if provider.client_secret:
                form["client_secret"] = provider.client_secret
        reply = await self._web.post(metadata.token_endpoint, form, basic=basic)
        if reply.error == "invalid_grant":
            raise OAuthCodeInvalid
        if not reply.ok or not isinstance(reply.document, dict):
            raise unavailable(self._host, reply.error or "no tokens")
        return reply.document

    async def _verified(self, token: object, nonce: str) -> dict[str, Any]:
        """Returns the claims of a good ID token (OpenID Connect Core section 3.1.3.7)."""
        provider = self.provider
        try:
            if not isinstance(token, str):
                raise jwt.DecodeError("there is none")
            header = jwt.get_unverified_header(token)
            algorithm = str(header.get("alg"))
            claims: dict[str, Any] = jwt.decode(
                token,
                await self._key(algorithm, header.get("kid")),
                algorithms=list(ALGORITHMS),
                audience=provider.client_id,
                issuer=provider.issuer,
                options=_DECODE_OPTIONS,
            )
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._refused(type(error).__name__) from error
        fault = claims_fault(claims, provider, nonce, self._clock.now())
        if fault is not None:
            raise self._refused(fault)
        return claims

    async def _key(self, algorithm: str, kid: object) -> jwt.PyJWK:
        """Returns the one key of an id for an algorithm; InvalidKeyError if there is none."""
        if algorithm not in ALGORITHMS:
            raise jwt.InvalidAlgorithmError
        found = _fitting(await self._keys.get(), algorithm, kid)
        if not found:
            # The provider may have begun to sign with another key.
            found = _fitting(await self._keys.get(oldest=RELOAD), algorithm, kid)
        if len(found) != 1:
            raise jwt.InvalidKeyError
        return jwt.PyJWK(found[0], algorithm)

    async def _userinfo(self, token: object, subject: str) -> dict[str, Any]:
        """Reads claims that the ID token leaves out (OpenID Connect Core sections 5.3 and 5.4)."""
        endpoint = (await self._metadata.get()).userinfo_endpoint
        if not endpoint or not isinstance(token, str):
            return {}
        reply = await self._web.get(endpoint, token=token)
        if not reply.ok or not isinstance(reply.document, dict):
            raise unavailable(self._host, reply.error or "no userinfo")
        if reply.document.get("sub") != subject:
            raise self._refused("userinfo is somebody else's")
        return {name: reply.document.get(name) for name in ("email", "email_verified")}

    async def _discover(self) -> Metadata:
        provider = self.provider
        url = f"{provider.issuer.rstrip('/')}/.well-known/openid-configuration"
        reply = await self._web.get(url)
        said = reply.document if reply.ok and isinstance(reply.document, dict) else {}
        if said.get("issuer") != provider.issuer:
            raise unavailable(self._host, "issuer is another")
        endpoints = {
            name: said.get(name, "")
            for name in (
                "authorization_endpoint",
                "token_endpoint",
                "jwks_uri",
                "userinfo_endpoint",
            )
        }
        for name, endpoint in endpoints.items():
            absent = not endpoint and name == "userinfo_endpoint"
            if not absent and not self._may_call(endpoint):
                raise unavailable(self._host, f"{name} is not usable")
        methods = said.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        return Metadata(
            **endpoints,
            secret_in_form="client_secret_basic" not in methods,
            announces_issuer=said.get("authorization_response_iss_parameter_supported") is True,
        )

    def _may_call(self, endpoint: object) -> bool:
        loopback = is_loopback(self.provider.issuer)
        return isinstance(endpoint, str) and is_secure(endpoint, loopback=loopback)

    async def _load_keys(self) -> Sequence[dict[str, Any]]:
        reply = await self._web.get((await self._metadata.get()).jwks_uri)
        keys = reply.document.get("keys") if isinstance(reply.document, dict) else None
        if not reply.ok or not isinstance(keys, list):
            raise unavailable(self._host, "no keys")
        return [key for key in keys if isinstance(key, dict)]

    def _refused(self, why: str) -> OAuthIdTokenInvalid:
        _log.warning("identity refused", provider=self.provider.name, why=why)
        return OAuthIdTokenInvalid()


def _fitting(keys: Sequence[dict[str, Any]], algorithm: str, kid: object) -> list[dict[str, Any]]:
    """Returns the keys that may have signed: of the id, if the token names one, and the type."""
    kind, curve = ALGORITHMS[algorithm]
    return [
        key
        for key in keys
        if (kid is None or key.get("kid") == kid)
        and key.get("kty") == kind
        and key.get("crv") == curve
        and key.get("use", "sig") == "sig"
        # RFC 9864 gives EdDSA over Ed25519 a name of its own.
        and key.get("alg", algorithm) in (algorithm, curve)
    ]
