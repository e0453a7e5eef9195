"""What the suite's commands refuse in production, and a machine without Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chassis.settings import DEVELOPMENT_DATABASE
from suite.state import ROOT


def ran(command: list[str], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FINITY_STATE_DIR": str(directory)} | variables
    return subprocess.run(  # noqa: S603 - our own command
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("url", ["", DEVELOPMENT_DATABASE])
@pytest.mark.parametrize("command", [["migrate"], ["migrate", "status"], ["migrate", "verify"]])
def test_migrations_in_production_need_a_database_of_its_own(
    directory: Path, url: str, command: list[str]
) -> None:
    """No embedded database answers in its place, and the published password opens none."""
    finity = [sys.executable, "-m", "suite", *command]
    ended = ran(finity, directory, FINITY_ENV="production", DATABASE_URL=url)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "DATABASE_URL" in ended.stderr
    assert "finity_password" not in ended.stderr
    assert not (directory / "postgres").exists()


def test_a_machine_without_python_is_told_in_a_sentence(directory: Path) -> None:
    """The sentence names what to set; make's own complaint about an exit code comes after it."""
    ended = ran(["make", "setup", "PYTHON=python3-none"], directory)
    assert ended.returncode != 0
    assert "make PYTHON=" in ended.stderr.splitlines()[0]
