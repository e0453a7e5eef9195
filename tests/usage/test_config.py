"""What the usage room is told by its environment."""

import pytest

from chassis.settings import SettingsError, load
from services.usage.config import Settings

PRODUCTION = {
    "FINITY_ENV": "production",
    "FINITY_SECRET": "s" * 32,
    "DATABASE_URL": "postgresql://finity:another@db/finity_db",
    "REDIS_URL": "redis://redis:6379",
}


def test_the_defaults_are_a_laptops() -> None:
    """With nothing set the room is on its own port with the allowance of the product."""
    settings = load(Settings)
    assert (settings.port, settings.metrics_port, settings.auth_address) == (
        50053,
        0,
        "127.0.0.1:50051",
    )
    assert settings.signup_credits == 100
    assert settings.usage_thresholds == (80, 100)
    assert set(settings.allowances().values()) == {0}
    assert settings.queue_events >= settings.flush_events


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FINITY_USAGE_PORT", "70000"),
        ("FINITY_USAGE_METRICS_PORT", "x"),
        ("FINITY_SIGNUP_CREDITS", "-1"),
        ("FINITY_USAGE_ALLOWANCE_FREE", "-1"),
        ("FINITY_USAGE_ALLOWANCE_PRO", "1000000001"),
        ("FINITY_FLUSH_EVENTS", "0"),
        ("FINITY_FLUSH_EVENTS", "20001"),
        ("FINITY_QUEUE_EVENTS", "0"),
        ("FINITY_USAGE_RETENTION_MONTHS", "1"),
        ("FINITY_USAGE_RETENTION_MONTHS", "-1"),
        ("FINITY_USAGE_THRESHOLDS", "80,101"),
    ],
)
def test_a_wrong_value_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """A value out of its bounds is one sentence that names the variable."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"^{variable}: [^\n]+\.$"):
        load(Settings)


@pytest.mark.parametrize("variable", ["FINITY_SECRET", "DATABASE_URL", "REDIS_URL"])
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


@pytest.mark.parametrize(("value", "expected"), [("50, 90", (50, 90)), ("", ())])
def test_thresholds_are_a_list(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: tuple[int, ...]
) -> None:
    """Percentages by comma; empty tells nobody."""
    monkeypatch.setenv("FINITY_USAGE_THRESHOLDS", value)
    assert load(Settings).usage_thresholds == expected
