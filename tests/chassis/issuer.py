"""An authority that issues access tokens, as auth does, and lets a test misuse its keys."""

import base64
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chassis.clock import Clock
from chassis.refusals import PeerUnavailable
from chassis.revocations import Revocations
from chassis.tokens import AUDIENCE

NAME = "https://issuer.test"


class Issuer:
    """Signs with one key; everything it knows is the test's to change."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.key = Ed25519PrivateKey.generate()
        self.kid = "first"
        self.reachable = True
        self.revoked = Revocations([], [])
        self.key_calls = 0
        self.polls = 0

    async def signing_keys(self) -> Sequence[dict[str, str]]:
        self.key_calls += 1
        if not self.reachable:
            raise PeerUnavailable
        return [{"kty": "OKP", "crv": "Ed25519", "x": self.public, "kid": self.kid}]

    async def revocations(self, since: datetime | None) -> Revocations:
        self.polls += 1
        if not self.reachable:
            raise PeerUnavailable
        return self.revoked

    @property
    def public(self) -> str:
        raw = self.key.public_key().public_bytes_raw()
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Returns the claims of a good token; a claim changed to None is left out."""
        now = self.clock.now()
        claims = {
            "iss": NAME,
            "aud": AUDIENCE,
            "sub": str(uuid4()),
            "sid": str(uuid4()),
            "role": "free",
            "ver": 1,
            "exp": int((now + timedelta(minutes=15)).timestamp()),
            **changed,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, *, kid: str | None = None, **changed: Any) -> str:
        """Returns a token signed as it should be."""
        return jwt.encode(
            self.claims(**changed), self.key, algorithm="EdDSA", headers={"kid": kid or self.kid}
        )

    def token_of(self, user_id: UUID, session_id: UUID, **changed: Any) -> str:
        return self.token(sub=str(user_id), sid=str(session_id), **changed)


def unsigned(claims: dict[str, Any], kid: str) -> str:
    """Returns a token with alg=none (RFC 8725 section 2.1)."""
    header = {"alg": "none", "typ": "JWT", "kid": kid}
    return f"{_part(header)}.{_part(claims)}."


def nested_header() -> str:
    """Returns a "token" whose header is JSON nested deeper than a parser goes."""
    return base64.urlsafe_b64encode(b"[" * 2900).decode().rstrip("=") + ".e30.e30"


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
