"""
Who is calling, and whether the contract admits it.

Services present a key whose SHA-256 is configured here; users present an access
token. Both come as `authorization: Bearer …` (RFC 6750 section 2.1).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol
from uuid import UUID

from finity.options.v1 import options_pb2
from google.protobuf.message import Message

from chassis.contract import Method
from chassis.refusals import (
    AccessDenied,
    CredentialsInvalid,
    CredentialsMissing,
    SubjectDenied,
    SubjectRequired,
)

SERVICE_KEY_PREFIX = "fsk_"
ADMIN_ROLE = "admin"
# Service keys are known by sight; one is configured for as long as the process runs.
_MOST_SEEN = 1_000


class Kind(Enum):
    """The kinds of caller."""

    PUBLIC = "public"
    USER = "user"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call."""

    kind: Kind
    name: str = ""
    """Name of a service."""
    user_id: UUID | None = None
    session_id: UUID | None = None
    role: str = ""
    acr: str = ""
    """How strongly a user is authenticated; the token's "acr" claim."""
    auth_time: datetime | None = None
    """When a user last proved who it is."""
    actor: UUID | None = None
    """The administrator who acts as the user; the token's "act" claim (RFC 8693)."""

    @property
    def key(self) -> str:
        """A stable text for logs and idempotency keys, e.g. "user:0192…"."""
        identity = self.user_id if self.kind is Kind.USER else self.name
        return f"{self.kind.value}:{identity}" if identity else self.kind.value

    @property
    def actor_key(self) -> str:
        """The same of who really acts: the impersonator, where there is one."""
        return f"{Kind.USER.value}:{self.actor}" if self.actor else self.key


PUBLIC = Caller(Kind.PUBLIC)


class Tokens(Protocol):
    """Verifies access tokens; see tokens.TokenVerifier."""

    async def verify(self, token: str) -> Caller:
        """Returns the user a token was issued to, or refuses it."""
        ...


class Authenticator:
    """Turns the "authorization" metadata of a call into a Caller."""

    def __init__(self, service_keys: Mapping[str, tuple[str, ...]], tokens: Tokens) -> None:
        self._tokens = tokens
        self._services = {
            digest.lower(): Caller(Kind.SERVICE, name=name)
            for name, digests in service_keys.items()
            for digest in digests
        }
        # Services call thousands of times a second: digests would take a tenth of that.
        self._seen: dict[str, Caller] = {}

    def known(self, authorization: str) -> Caller | None:
        """Returns the service that has shown this before; what saves most calls a coroutine."""
        return self._seen.get(authorization)

    async def authenticate(self, authorization: str) -> Caller:
        """Returns the caller; refuses missing, unknown, expired and revoked credentials."""
        if not authorization:
            raise CredentialsMissing
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "bearer" or not credentials:
            raise CredentialsInvalid
        if not credentials.startswith(SERVICE_KEY_PREFIX):
            return await self._tokens.verify(credentials)
        # A lookup by digest tells nothing about the key by its time.
        service = self._services.get(hashlib.sha256(credentials.encode()).hexdigest())
        if service is None:
            raise CredentialsInvalid
        if len(self._seen) < _MOST_SEEN:
            self._seen[authorization] = service
        return service


def admit(method: Method, caller: Caller) -> bool:
    """
    Checks the method's access rule; AccessDenied if the caller's kind is not in it.

    The same for an administrator who acts as a user, where only users themselves may.

    Returns whether the caller may name any user (admitted as ADMIN or SERVICE)
    rather than itself alone (admitted as USER).
    """
    allow = method.allow
    if method.in_person and caller.actor is not None:
        raise AccessDenied
    if caller.kind is Kind.SERVICE and options_pb2.SERVICE in allow:
        return True
    if caller.kind is Kind.USER:
        if caller.role == ADMIN_ROLE and options_pb2.ADMIN in allow:
            return True
        if options_pb2.USER in allow:
            return False
    raise AccessDenied


def settle_subject(method: Method, request: Message, caller: Caller, may_name_anyone: bool) -> None:
    """
    Puts the caller's own id where the subject is empty or "me".

    SubjectDenied if a user names somebody else, SubjectRequired if a service names nobody.
    """
    if not method.subject:
        return
    named = getattr(request, method.subject)
    own = str(caller.user_id) if caller.user_id else ""
    if named in ("", "me"):
        if not own:
            raise SubjectRequired
        setattr(request, method.subject, own)
    elif named != own and not may_name_anyone:
        raise SubjectDenied
