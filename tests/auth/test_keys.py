"""Signing keys and the tokens they sign."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import jwt
import pytest

from chassis.server import StartupError
from services.auth.domain.sessions import Session
from services.auth.domain.users import Role, User
from services.auth.keys import make_key, open_key, public_jwk
from tests.factories import ISSUER, SEALING_SECRET

NOW = datetime(2026, 7, 1, 12, 0, 0, 999_999, tzinfo=UTC)
USER = User(UUID(int=8), "ada@example.com", Role.PRO, 3, NOW, None)
SESSION = Session(UUID(int=7), USER.id, 0, NOW, NOW + timedelta(days=90), NOW)


def test_a_token_says_who_and_how_long() -> None:
    """A token carries exactly the claims other services rely on, in whole seconds."""
    key = make_key(SEALING_SECRET)
    signer = open_key(SEALING_SECRET, key.kid, key.sealed, ISSUER)
    expires = NOW + timedelta(minutes=15)
    token = signer.sign(USER, SESSION, token_id="t1", now=NOW, expires=expires)
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "typ": "JWT", "kid": key.kid}
    claims = jwt.decode(
        token,
        jwt.PyJWK(public_jwk(key.kid, key.public_key)),
        algorithms=["EdDSA"],
        audience="finity",
        issuer=ISSUER,
        options={"verify_exp": False, "verify_iat": False},
    )
    assert claims == {
        "iss": ISSUER,
        "aud": "finity",
        "sub": str(USER.id),
        "sid": str(SESSION.id),
        "role": "pro",
        "ver": 3,
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 900,
        "jti": "t1",
        "acr": "aal1",
        "amr": ["pwd"],
        "auth_time": int(NOW.timestamp()),
    }


def test_another_key_does_not_verify() -> None:
    """A token verifies with the key that signed it and no other."""
    key, other = make_key(SEALING_SECRET), make_key(SEALING_SECRET)
    signer = open_key(SEALING_SECRET, key.kid, key.sealed, ISSUER)
    token = signer.sign(USER, SESSION, token_id="t1", now=NOW, expires=NOW)
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, jwt.PyJWK(public_jwk(key.kid, other.public_key)), algorithms=["EdDSA"])


def test_a_key_rests_sealed() -> None:
    """What is stored does not hold the private half, and two keys share nothing."""
    key, other = make_key(SEALING_SECRET), make_key(SEALING_SECRET)
    raw = open_key(SEALING_SECRET, key.kid, key.sealed, ISSUER).key.private_bytes_raw()
    assert raw not in key.sealed
    assert (key.kid, key.public_key) != (other.kid, other.public_key)
    assert set(public_jwk(key.kid, key.public_key)) == {"kty", "crv", "x", "kid", "alg", "use"}


def test_another_secret_opens_nothing() -> None:
    """A key sealed with another secret, renamed or damaged, names the setting."""
    key = make_key(SEALING_SECRET)
    damaged = key.sealed[:-1] + bytes([key.sealed[-1] ^ 1])
    for secret, kid, sealed in (
        (bytes(32), key.kid, key.sealed),
        (SEALING_SECRET, "other", key.sealed),
        (SEALING_SECRET, key.kid, damaged),
    ):
        with pytest.raises(StartupError, match=r"^FINITY_SECRET is not the one .*\.$"):
            open_key(secret, kid, sealed, ISSUER)
