"""
Identity providers, and the secrets of one sign-in with them.

A flow is one random secret that the client keeps. State, nonce and code verifier
are derived from it with a key of the room's (HMAC-SHA256): the table holds
digests, and the client cannot compute what only the provider may see.
"""

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from urllib.parse import urlsplit
from uuid import UUID

FLOW_LIFE = timedelta(minutes=10)
# Clocks of providers and ours may differ by so much.
CLOCK_SKEW = timedelta(seconds=60)
MOST_SUBJECT = 255
_FLOW_BYTES = 32
_MOST_EMAIL = 254
# As the contract of Register has it: ASCII, one "@".
_EMAIL = re.compile(r"[!-?A-~]+@[!-?A-~]+")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class Purpose(StrEnum):
    """What a flow is for; the values of oauth_flows.purpose."""

    SIGN_IN = "sign_in"
    LINK = "link"


class Protocol(StrEnum):
    """How a provider is spoken to."""

    OIDC = "oidc"
    GITHUB = "github"
    """OAuth 2.0 without an ID token: who somebody is, its API says."""


@dataclass(frozen=True, slots=True)
class Provider:
    """An identity provider and this suite's registration with it."""

    name: str
    protocol: Protocol
    issuer: str
    """Issuer identifier; compared character for character (OpenID Connect Core section 3.1.3.7)."""
    client_id: str
    client_secret: str = field(repr=False)
    """Empty for a public client."""
    scopes: tuple[str, ...]
    redirect_uris: tuple[str, ...]
    base_url: str = ""
    """GitHub's pages."""
    api_url: str = ""
    """GitHub's API."""


@dataclass(frozen=True, slots=True)
class FlowSecrets:
    """What one flow sends through the browser and to the provider."""

    state: str
    nonce: str
    verifier: str
    """RFC 7636 section 4.1: 43 characters, 256 bits."""

    @property
    def challenge(self) -> str:
        """The code challenge, method S256 (RFC 7636 section 4.2)."""
        return _base64url(hashlib.sha256(self.verifier.encode()).digest())


@dataclass(frozen=True, slots=True)
class Flow:
    """A sign-in or linking that is under way at a provider."""

    id: UUID
    provider: str
    purpose: Purpose
    user_id: UUID | None
    """Who links; None for a sign-in."""
    redirect_uri: str
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider sent back through the browser."""

    state: str
    code: str
    """Empty if error is there."""
    error: str
    iss: str
    """The issuer that answered (RFC 9207); empty if it did not say."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Who signed in, as a provider vouches for it."""

    provider: str
    subject: str
    email: str
    email_verified: bool

    @property
    def usable_email(self) -> str:
        """The address if the provider has verified it and an account can have it, else empty."""
        email = self.email.strip()
        fits = len(email) <= _MOST_EMAIL and _EMAIL.fullmatch(email) is not None
        return email if fits and self.email_verified else ""

    @property
    def shown_email(self) -> str:
        """The address as a list of identities may show it, else empty."""
        fits = len(self.email) <= _MOST_EMAIL and _EMAIL.fullmatch(self.email) is not None
        return self.email if fits else ""


@dataclass(frozen=True, slots=True)
class Identity:
    """An account at a provider that is linked to a user."""

    id: UUID
    user_id: UUID
    provider: str
    subject: str
    email: str
    created_at: datetime
    last_used_at: datetime


def new_flow() -> str:
    """Returns the secret of a new flow: 256 bits, base64url."""
    return secrets.token_urlsafe(_FLOW_BYTES)


def secrets_of(key: bytes, flow: str) -> FlowSecrets:
    """Derives what belongs to a flow; the same every time."""

    def derived(purpose: str) -> str:
        return _base64url(hmac.digest(key, f"{purpose}:{flow}".encode(), hashlib.sha256))

    return FlowSecrets(derived("state"), derived("nonce"), derived("verifier"))


def usable_subject(subject: str) -> bool:
    """Tells whether an id is 1 to 255 visible ASCII characters (OpenID Connect Core section 2)."""
    return 1 <= len(subject) <= MOST_SUBJECT and subject.isascii() and subject.isprintable()


def is_loopback(url: str) -> bool:
    """Tells whether what is sent to a URL stays on this machine."""
    return urlsplit(url).hostname in _LOOPBACK


def is_secure(url: str, *, loopback: bool) -> bool:
    """Tells whether a URL is https with a host, or, if `loopback` may be, http on this machine."""
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    if not good or parts.username is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (loopback and parts.scheme == "http" and is_loopback(url))


def issuer_fits(iss: str, provider: Provider, *, announced: bool) -> bool:
    """
    Tells whether the issuer in an answer is the one that was asked (RFC 9207 section 2.4).

    `announced` says whether the provider's metadata promises the parameter.
    """
    return iss == provider.issuer if iss or announced else True


def claims_fault(
    claims: dict[str, object], provider: Provider, nonce: str, now: datetime
) -> str | None:
    """
    Names what is wrong with an ID token whose signature, issuer and audience are right.

    None if nothing is: the rest of OpenID Connect Core section 3.1.3.7.
    """
    audience, party = claims.get("aud"), claims.get("azp")
    if isinstance(audience, list) and len(audience) > 1 and party is None:
        return "azp is missing"
    if party is not None and party != provider.client_id:
        return "azp is another client"
    subject = claims.get("sub")
    if not isinstance(subject, str) or not usable_subject(subject):
        return "sub is not usable"
    given = claims.get("nonce")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
        return "nonce is another"
    return _time_fault(claims, now)


def _time_fault(claims: dict[str, object], now: datetime) -> str | None:
    expires, issued = claims.get("exp"), claims.get("iat")
    if not _is_number(expires) or not _is_number(issued):
        return "exp or iat is no number"
    skew, seconds = CLOCK_SKEW.total_seconds(), now.timestamp()
    if float(str(expires)) <= seconds - skew:
        return "exp is over"
    if float(str(issued)) > seconds + skew:
        return "iat is to come"
    # An answer is at most as old as its flow.
    if float(str(issued)) < seconds - FLOW_LIFE.total_seconds() - skew:
        return "iat is long ago"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
