"""
Signing keys and the access tokens they sign: JWT (RFC 7519), EdDSA over Ed25519 (RFC 8037).

The private half rests in the database sealed with AES-256-GCM under a key
derived from FINITY_SECRET, so that every replica signs with the same key.
"""

import base64
import os
from dataclasses import dataclass
from datetime import datetime

import jwt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from chassis.server import StartupError
from chassis.tokens import ALGORITHM, AUDIENCE
from services.auth.domain.sessions import Session
from services.auth.domain.users import User

_NONCE_BYTES = 12
_KID_BYTES = 9


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A new key pair, ready to be stored."""

    kid: str
    public_key: bytes
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs access tokens with one key."""

    kid: str
    key: Ed25519PrivateKey
    issuer: str

    def sign(
        self, user: User, session: Session, *, token_id: str, now: datetime, expires: datetime
    ) -> str:
        """Returns an access token; times are in seconds as RFC 7519 has them."""
        claims: dict[str, object] = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": str(user.id),
            "sid": str(session.id),
            "role": user.role.value,
            "ver": user.token_version,
            "acr": session.acr.value,
            "amr": list(session.amr),
            "auth_time": int(session.auth_time.timestamp()),
            "iat": int(now.timestamp()),
            "exp": int(expires.timestamp()),
            "jti": token_id,
        }
        if session.impersonated_by is not None:
            # Who really acts (RFC 8693 section 4.1).
            claims["act"] = {"sub": str(session.impersonated_by)}
        return jwt.encode(claims, self.key, algorithm=ALGORITHM, headers={"kid": self.kid})


def make_key(secret: bytes) -> SealedKey:
    """Makes a key pair and seals its private half with `secret` (32 bytes)."""
    key = Ed25519PrivateKey.generate()
    nonce = os.urandom(_NONCE_BYTES)
    kid = base64.urlsafe_b64encode(os.urandom(_KID_BYTES)).decode()
    sealed = nonce + AESGCM(secret).encrypt(nonce, key.private_bytes_raw(), kid.encode())
    return SealedKey(kid, key.public_key().public_bytes_raw(), sealed)


def open_key(secret: bytes, kid: str, sealed: bytes, issuer: str) -> Signer:
    """Unseals a stored key; StartupError if FINITY_SECRET is not the one that sealed it."""
    try:
        raw = AESGCM(secret).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], kid.encode())
    except InvalidTag as error:
        raise StartupError(
            "FINITY_SECRET is not the one this database's signing key was sealed with;"
            " set it back to that value."
        ) from error
    return Signer(kid, Ed25519PrivateKey.from_private_bytes(raw), issuer)


def public_jwk(kid: str, public_key: bytes) -> dict[str, str]:
    """Returns a public key as a JSON Web Key (RFC 8037 section 2)."""
    x = base64.urlsafe_b64encode(public_key).decode().rstrip("=")
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "alg": ALGORITHM, "use": "sig"}
