"""What the auth room is told by its environment."""

import pytest

from chassis.settings import SettingsError, load
from services.auth.config import Settings

PRODUCTION = {
    "FINITY_ENV": "production",
    "FINITY_SECRET": "s" * 32,
    "DATABASE_URL": "postgresql://finity:another@db/finity_db",
    "REDIS_URL": "redis://redis:6379",
    "FINITY_PUBLIC_URL": "https://app.example.com",
}


def test_the_defaults_are_a_laptops() -> None:
    """With nothing set the room is on its own port with the lifetimes of the design."""
    settings = load(Settings)
    assert (settings.port, settings.metrics_port, settings.usage_address) == (
        50051,
        0,
        "127.0.0.1:50053",
    )
    assert settings.access_token_seconds == 15 * 60
    assert (settings.session_idle_days, settings.session_days) == (30, 90)
    assert (settings.refresh_grace_seconds, settings.refresh_reuse_seconds) == (10, 60)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FINITY_AUTH_PORT", "70000"),
        ("FINITY_AUTH_METRICS_PORT", "x"),
        ("FINITY_ACCESS_TOKEN_SECONDS", "9"),
        ("FINITY_SESSION_IDLE_DAYS", "0"),
        ("FINITY_SESSION_DAYS", "731"),
        ("FINITY_REFRESH_GRACE_SECONDS", "61"),
        ("FINITY_REFRESH_REUSE_SECONDS", "-1"),
        ("FINITY_ARGON2_MEMORY_KIB", "7"),
        ("FINITY_ARGON2_TIME_COST", "0"),
        ("FINITY_ARGON2_QUEUE", "0"),
        ("FINITY_OAUTH_PROVIDERS", "no JSON"),
        ("FINITY_PUBLIC_URL", "app.example.com"),
        ("FINITY_PUBLIC_URL", "https://app.example.com/#page"),
        ("FINITY_SMTP_PORT", "0"),
        ("FINITY_SMTP_SECURITY", "ssl"),
        ("FINITY_MAIL_FROM", "Finity"),
        ("FINITY_MAIL_FROM", "a@b.de\r\nBcc: c@d.de"),
    ],
)
def test_a_wrong_value_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """A value out of its bounds is one sentence that names the variable."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"^{variable}: [^\n]+\.$"):
        load(Settings)


@pytest.mark.parametrize("variable", [*PRODUCTION][1:])
def test_production_takes_no_development_value(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """In production a value left out is a sentence that names it."""
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    load(Settings)
    monkeypatch.delenv(variable)
    with pytest.raises(SettingsError, match=variable):
        load(Settings)


def test_production_sends_no_password_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mail server that wants a name is spoken to in TLS, one way or the other."""
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FINITY_SMTP_USERNAME", "finity")
    with pytest.raises(SettingsError, match="FINITY_SMTP_SECURITY"):
        load(Settings)
    for security in ("starttls", "tls"):
        monkeypatch.setenv("FINITY_SMTP_SECURITY", security)
        load(Settings)
