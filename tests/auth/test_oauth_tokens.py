"""ID tokens that no certified provider would issue, each wrong in one way."""

import json
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from jwt.algorithms import RSAAlgorithm

from services.auth.domain.oauth import Protocol, Provider
from services.auth.errors import OAuthIdTokenInvalid
from services.auth.providers.http import Web
from services.auth.providers.oidc import OpenIdProvider
from tests.chassis.issuer import nested_header, unsigned
from tests.fakes import FakeClock

ISSUER = "https://id.acme.example"
KEY, OTHER, SMALL = (generate_private_key(65537, bits) for bits in (2048, 2048, 1024))
KID = {"kid": "k"}


def public(key: Any, **other: str) -> dict[str, Any]:
    jwk: dict[str, Any] = json.loads(RSAAlgorithm.to_jwk(key.public_key()))
    return jwk | KID | other


def knowing(clock: FakeClock, *keys: dict[str, Any]) -> OpenIdProvider:
    """The provider as it is once its keys are loaded."""
    settings = Provider("acme", Protocol.OIDC, ISSUER, "finity", "hush", ("openid",), ())
    provider = OpenIdProvider(settings, Web(httpx.AsyncClient(trust_env=False)), clock)
    provider._keys._value = (keys, clock.now())
    return provider


def claims(clock: FakeClock, **changed: Any) -> dict[str, Any]:
    at = int(clock.now().timestamp())
    good = {"iss": ISSUER, "aud": "finity", "sub": "7", "nonce": "n", "iat": at, "exp": at + 60}
    return {name: value for name, value in (good | changed).items() if value is not None}


async def test_the_right_token_is_taken(clock: FakeClock) -> None:
    """With a key id and, where there is one key only, without."""
    provider = knowing(clock, public(KEY))
    for headers in (KID, {}):
        token = jwt.encode(claims(clock), KEY, "RS256", headers)
        assert (await provider._verified(token, "n"))["sub"] == "7"


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": f"{ISSUER}/"},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"nonce": "other"},
        {"azp": "other"},
    ],
)
async def test_claims_that_are_not_ours(clock: FakeClock, changed: dict[str, Any]) -> None:
    """Issuer and audience are compared exactly, and nothing that is needed may be missing."""
    token = jwt.encode(claims(clock, **changed), KEY, "RS256", KID)
    with pytest.raises(OAuthIdTokenInvalid):
        await knowing(clock, public(KEY))._verified(token, "n")


async def test_signatures_that_are_none(clock: FakeClock) -> None:
    """No algorithm, one too deep, a shared secret, another key, algorithm or id, no token."""
    provider, said = knowing(clock, public(KEY)), claims(clock)
    for token in (
        unsigned(said, "k"),
        nested_header(),
        jwt.encode(said, "hush" * 16, "HS256", KID),
        jwt.encode(said, OTHER, "RS256", KID),
        jwt.encode(said, KEY, "PS256", KID),
        jwt.encode(said, KEY, "RS256", {"kid": "other"}),
        "",
        "a.b.c",
        None,
    ):
        with pytest.raises(OAuthIdTokenInvalid):
            await provider._verified(token, "n")


@pytest.mark.parametrize(
    "keys",
    [
        (public(KEY, use="enc"),),
        (public(KEY, alg="PS256"),),
        (public(KEY, kty="oct"),),
        (public(KEY), public(OTHER)),
        ({"kid": "k", "kty": "RSA"},),
        (),
    ],
)
async def test_keys_that_cannot_have_signed(
    clock: FakeClock, keys: tuple[dict[str, Any], ...]
) -> None:
    """A key for something else, an id that two keys have, and a key that is none."""
    token = jwt.encode(claims(clock), KEY, "RS256", KID)
    with pytest.raises(OAuthIdTokenInvalid):
        await knowing(clock, *keys)._verified(token, "n")


async def test_a_key_that_is_too_small(clock: FakeClock) -> None:
    """1,024 bits are no proof any more."""
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = jwt.encode(claims(clock), SMALL, "RS256", KID)
    with pytest.raises(OAuthIdTokenInvalid):
        await knowing(clock, public(SMALL))._verified(token, "n")
