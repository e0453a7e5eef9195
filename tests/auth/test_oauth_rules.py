"""Identity providers: the rules by themselves, and how they are configured."""

import json
from datetime import timedelta
from typing import Any

import pytest

from chassis.settings import SettingsError, load
from services.auth.config import Settings
from services.auth.domain.oauth import (
    CLOCK_SKEW,
    FLOW_LIFE,
    FlowSecrets,
    Proof,
    Protocol,
    Provider,
    claims_fault,
    is_secure,
    issuer_fits,
    new_flow,
    secrets_of,
)
from tests.auth.test_config import PRODUCTION
from tests.fakes import FakeClock

NOW = FakeClock().now()
SECOND = timedelta(seconds=1)
PROVIDER = Provider(
    name="acme",
    protocol=Protocol.OIDC,
    issuer="https://id.acme.example",
    client_id="finity",
    client_secret="hush",
    scopes=("openid",),
    redirect_uris=("https://app.example.com/cb",),
)
REGISTERED = {"client_id": "c", "client_secret": "hush", "redirect_uri": "https://a.example/cb"}
ACME = REGISTERED | {"issuer": "https://id.acme.example"}
GITHUB = REGISTERED | {"preset": "github"}


def claims(**changed: Any) -> dict[str, object]:
    """Claims of a good ID token but for what is named; None leaves one out."""
    at = int(NOW.timestamp())
    good = {"sub": "7", "aud": "finity", "nonce": "n", "iat": at, "exp": at + 60}
    return {name: value for name, value in (good | changed).items() if value is not None}


def seconds(change: timedelta) -> float:
    return (NOW + change).timestamp()


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"azp": "finity"},
        {"aud": ["finity", "other"], "azp": "finity"},
        {"aud": ["finity"]},
        {"exp": seconds(SECOND - CLOCK_SKEW)},
        {"iat": seconds(CLOCK_SKEW)},
        {"iat": seconds(-FLOW_LIFE - CLOCK_SKEW)},
    ],
)
def test_a_good_token(changed: dict[str, Any]) -> None:
    """Clocks may differ by a minute; the audience may be a list."""
    assert claims_fault(claims(**changed), PROVIDER, "n", NOW) is None


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"aud": ["finity", "other"]}, "azp is missing"),
        ({"azp": "other"}, "azp is another client"),
        ({"sub": None}, "sub is not usable"),
        ({"sub": ""}, "sub is not usable"),
        ({"sub": 7}, "sub is not usable"),
        ({"sub": "x" * 256}, "sub is not usable"),
        ({"sub": "a\0b"}, "sub is not usable"),
        ({"nonce": None}, "nonce is another"),
        ({"nonce": "é"}, "nonce is another"),
        ({"nonce": ["n"]}, "nonce is another"),
        ({"exp": seconds(-CLOCK_SKEW)}, "exp is over"),
        ({"exp": "tomorrow"}, "exp or iat is no number"),
        ({"iat": True}, "exp or iat is no number"),
        ({"iat": seconds(CLOCK_SKEW + SECOND)}, "iat is to come"),
        ({"iat": seconds(-FLOW_LIFE - CLOCK_SKEW - SECOND)}, "iat is long ago"),
    ],
)
def test_a_bad_token(changed: dict[str, Any], fault: str) -> None:
    """Each rule of OpenID Connect Core section 3.1.3.7 that is ours to check."""
    assert claims_fault(claims(**changed), PROVIDER, "n", NOW) == fault


def test_the_secrets_of_a_flow() -> None:
    """Derived, different from each other and with the key; the challenge is RFC 7636's example."""
    flow = new_flow()
    found = secrets_of(bytes(32), flow)
    assert found == secrets_of(bytes(32), flow)
    assert len({flow, found.state, found.nonce, found.verifier, found.challenge}) == 5
    assert secrets_of(b"1" * 32, flow).verifier != found.verifier
    assert {len(flow), len(found.state), len(found.verifier)} == {43}
    example = FlowSecrets("", "", "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
    assert example.challenge == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_the_issuer_of_an_answer() -> None:
    """It must be the right one where it is there, and be there where it is announced (RFC 9207)."""
    issuer = PROVIDER.issuer
    assert issuer_fits(issuer, PROVIDER, announced=True)
    assert issuer_fits(issuer, PROVIDER, announced=False)
    assert issuer_fits("", PROVIDER, announced=False)
    assert not issuer_fits("", PROVIDER, announced=True)
    assert not issuer_fits(f"{issuer}/", PROVIDER, announced=False)


@pytest.mark.parametrize(
    ("url", "on_loopback", "elsewhere"),
    [
        ("https://id.example", True, True),
        ("https://id.example:8443/path?query", True, True),
        ("http://127.0.0.1:9/x", True, False),
        ("http://localhost/x", True, False),
        ("http://[::1]:9/x", True, False),
        ("http://id.example", False, False),
        ("https://user:password@id.example", False, False),
        ("https://id.example/#part", False, False),
        ("https:///nowhere", False, False),
        ("https://id.example:x", False, False),
        ("https://[half", False, False),
        ("javascript:alert(1)", False, False),
        ("ftp://127.0.0.1/", False, False),
    ],
)
def test_addresses(url: str, on_loopback: bool, elsewhere: bool) -> None:
    """https with a host, or http to this machine where that is allowed."""
    found = is_secure(url, loopback=True), is_secure(url, loopback=False)
    assert found == (on_loopback, elsewhere)


@pytest.mark.parametrize(
    ("email", "verified", "usable"),
    [
        ("ada@example.com", True, "ada@example.com"),
        (" ada@example.com ", True, "ada@example.com"),
        ("ada@example.com", False, ""),
        ("", True, ""),
        ("ada", True, ""),
        ("a@b@c", True, ""),
        ("a b@example.com", True, ""),
        ("a\0@example.com", True, ""),
        ("\u0130@example.com", True, ""),
        ("a" * 250 + "@b.de", True, ""),
    ],
)
def test_an_address_that_an_account_can_have(email: str, verified: bool, usable: str) -> None:
    """Verified by the provider, and of the form the contract of Register takes."""
    proof = Proof("acme", "7", email, verified)
    assert proof.usable_email == usable
    assert "\0" not in proof.shown_email


def configured(monkeypatch: pytest.MonkeyPatch, providers: object) -> list[Provider]:
    monkeypatch.setenv("FINITY_OAUTH_PROVIDERS", json.dumps(providers))
    return load(Settings).providers()


def test_presets_and_issuers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset brings its addresses and scopes; nothing shows a client's secret."""
    google = REGISTERED | {"preset": "google"}
    found = configured(monkeypatch, {"google": google, "github": GITHUB, "acme": ACME})
    assert [(p.name, p.protocol, p.issuer) for p in found] == [
        ("google", Protocol.OIDC, "https://accounts.google.com"),
        ("github", Protocol.GITHUB, "https://github.com/login/oauth"),
        ("acme", Protocol.OIDC, "https://id.acme.example"),
    ]
    assert found[0].scopes == ("openid", "email", "profile")
    assert found[1].scopes == ("read:user", "user:email")
    assert (found[1].base_url, found[1].api_url) == ("https://github.com", "https://api.github.com")
    assert {p.client_secret for p in found} == {"hush"}
    assert "hush" not in repr(found) + repr(load(Settings))
    assert load(Settings, oauth_providers={}).providers() == []


@pytest.mark.parametrize(
    "providers",
    [
        [],
        {"Acme": ACME},
        {"acme": REGISTERED},
        {"acme": ACME | {"preset": "google"}},
        {"acme": ACME | {"preset": "facebook", "issuer": ""}},
        {"acme": ACME | {"client_id": ""}},
        {"acme": ACME | {"redirect_uri": []}},
        {"acme": ACME | {"redirect_uri": "http://app.example.com/cb"}},
        {"acme": ACME | {"issuer": "http://id.acme.example"}},
        {"acme": ACME | {"scopes": ["email"]}},
        {"acme": ACME | {"base_url": "https://github.acme.example"}},
        {"acme": ACME | {"client_secrets": "typo"}},
        {"github": GITHUB | {"api_url": "http://github.acme.example/api/v3"}},
    ],
)
def test_a_wrong_provider_is_a_sentence(monkeypatch: pytest.MonkeyPatch, providers: object) -> None:
    """The sentence names the variable and never a secret."""
    with pytest.raises(SettingsError, match=r"^FINITY_OAUTH_PROVIDERS") as refused:
        configured(monkeypatch, providers)
    assert "hush" not in str(refused.value)


def test_production_takes_no_provider_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """In development a provider may be on loopback; in production its traffic is encrypted."""
    local = {"acme": ACME | {"issuer": "http://127.0.0.1:3000"}}
    assert configured(monkeypatch, local)[0].issuer == "http://127.0.0.1:3000"
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=r"^FINITY_OAUTH_PROVIDERS: acme "):
        configured(monkeypatch, local)
    assert configured(monkeypatch, {"acme": ACME})
