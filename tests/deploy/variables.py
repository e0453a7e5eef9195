"""Every environment variable that the settings classes read, its default and its readers."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, SecretStr
from pydantic.fields import FieldInfo

from gateway.config import GatewaySettings

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = "gateway"


@dataclass(slots=True)
class Variable:
    """One variable: its default as the README shows it, and who reads it."""

    default: str
    readers: set[str] = field(default_factory=set)


def rooms() -> list[str]:
    """Returns the rooms that can be started."""
    return sorted(path.parent.name for path in ROOT.glob("services/*/__main__.py"))


def classes() -> dict[str, type[BaseModel]]:
    """Returns the settings class of each room and of the gateway."""
    found: dict[str, type[BaseModel]] = {
        room: importlib.import_module(f"services.{room}.config").Settings for room in rooms()
    }
    return {**found, GATEWAY: GatewaySettings}


def variables() -> dict[str, Variable]:
    """Returns every variable by name."""
    found: dict[str, Variable] = {}
    for reader, settings in classes().items():
        for name, info in settings.model_fields.items():
            default = shown(info.get_default())
            variable = found.setdefault(variable_of(name, info), Variable(default))
            assert variable.default == default, f"{name} has two defaults"
            variable.readers.add(reader)
    return found


def variable_of(name: str, info: FieldInfo) -> str:
    """Returns the variable a field is read from."""
    alias = info.validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return str(alias) if alias else f"FINITY_{name.upper()}"


def shown(default: Any) -> str:
    """Writes a default as a person would set it; "none" for nothing."""
    value = default.get_secret_value() if isinstance(default, SecretStr) else default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple) and value:
        return ",".join(map(str, value))
    return str(value) if value not in (None, "", {}, ()) else "none"
