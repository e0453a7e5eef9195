"""chassis.settings: what the environment says, and one sentence when it says it wrong."""

import hashlib

import pytest

from chassis.settings import (
    DEVELOPMENT_DATABASE,
    DEVELOPMENT_KEY,
    DEVELOPMENT_REDIS,
    DEVELOPMENT_SECRET,
    ServiceSettings,
    SettingsError,
    load,
)

PRODUCTION = {
    "FINITY_ENV": "production",
    "FINITY_SECRET": "s" * 32,
    "DATABASE_URL": "postgresql://finity:a-real-one@db:5432/finity_db",
    "REDIS_URL": "rediss://:a-real-one@redis:6379",
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "FINITY_ENV", "FINITY_SECRET"):
        monkeypatch.delenv(name, raising=False)


def sentence_of(**environment: str) -> str:
    """Returns what a service that reads this environment says before it ends."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SettingsError) as refused:
            load(ServiceSettings)
    return str(refused.value)


def test_the_defaults_are_the_development_stack() -> None:
    """Without any variable a service finds the stack of docker-compose.yml."""
    settings = load(ServiceSettings)
    assert settings.env == "development"
    assert settings.database_url.get_secret_value() == DEVELOPMENT_DATABASE
    assert settings.redis_url.get_secret_value() == DEVELOPMENT_REDIS
    assert settings.transport == "native"


def test_variables_are_read_under_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """DATABASE_URL and REDIS_URL keep the product's names, all others start with FINITY_."""
    digest = hashlib.sha256(b"key").hexdigest()
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@h/d")
    monkeypatch.setenv("REDIS_URL", "redis://r:1")
    monkeypatch.setenv("FINITY_TRANSPORT", "grpcio")
    monkeypatch.setenv("FINITY_SERVICE_KEYS", f'{{"usage": ["{digest}"]}}')
    settings = load(ServiceSettings)
    assert settings.database_url.get_secret_value() == "postgresql://u:p@h/d"
    assert settings.redis_url.get_secret_value() == "redis://r:1"
    assert settings.transport == "grpcio"
    assert settings.service_keys == {"usage": (digest,)}


def test_no_keys_is_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable means that no service may call."""
    monkeypatch.setenv("FINITY_SERVICE_KEYS", "")
    assert load(ServiceSettings).service_keys == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FINITY_ENV", "staging"),
        ("FINITY_TRANSPORT", "quic"),
        ("FINITY_PORT", "70000"),
        ("FINITY_DEFAULT_DEADLINE", "0"),
        ("FINITY_MAX_CONCURRENT_CALLS", "many"),
        ("FINITY_SERVICE_KEYS", "usage=abc"),
        ("FINITY_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_its_variable(variable: str, value: str) -> None:
    """Whoever set a variable wrong reads its name, not a stack trace."""
    sentence = sentence_of(**{variable: value})
    assert sentence.startswith(f"{variable}: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_every_wrong_variable_is_named() -> None:
    """Two mistakes are told at once."""
    sentence = sentence_of(FINITY_ENV="staging", FINITY_PORT="-1")
    assert "FINITY_ENV: " in sentence
    assert "FINITY_PORT: " in sentence


def test_production_starts_on_values_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A production environment without a development value is accepted."""
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    assert load(ServiceSettings).env == "production"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FINITY_SECRET", DEVELOPMENT_SECRET),
        ("FINITY_SECRET", "short"),
        ("DATABASE_URL", DEVELOPMENT_DATABASE),
        ("DATABASE_URL", "postgresql://other:finity_password@db/finity_db"),
        ("REDIS_URL", DEVELOPMENT_REDIS),
        ("REDIS_URL", f"{DEVELOPMENT_REDIS}/0"),
        ("FINITY_SERVICE_KEY", f"fsk_usage_{DEVELOPMENT_KEY}"),
    ],
)
def test_production_refuses_development_values(variable: str, value: str) -> None:
    """In production no credential of the development stack is accepted, nor printed."""
    sentence = sentence_of(**{**PRODUCTION, variable: value})
    assert sentence.startswith(variable)
    assert value not in sentence


def test_every_purpose_has_a_key_of_its_own() -> None:
    """Derived keys are stable, 32 bytes, and differ by purpose and by secret."""
    one = ServiceSettings(secret="a" * 32)
    two = ServiceSettings(secret="b" * 32)
    assert one.derive("pages") == ServiceSettings(secret="a" * 32).derive("pages")
    assert len(one.derive("pages")) == 32
    assert len({one.derive("pages"), one.derive("idempotency"), two.derive("pages")}) == 3


def test_settings_hide_their_secrets() -> None:
    """Printing the settings shows no password, secret or key."""
    settings = ServiceSettings(
        database_url="postgresql://u:hunter22@h/d", secret="x" * 40, service_key="fsk_a_b"
    )
    shown = f"{settings!r} {settings}"
    assert "hunter22" not in shown
    assert "x" * 40 not in shown
    assert "fsk_a_b" not in shown
