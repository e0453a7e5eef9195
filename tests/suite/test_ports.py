"""Ports: free or taken, and by whom."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from suite import addresses, ports
from suite.errors import SuiteError


def test_a_taken_port_is_refused_with_the_setting_to_change() -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as squatter:
        port = squatter.getsockname()[1]
        with pytest.raises(SuiteError, match=f"Port {port} .* set FINITY_AUTH_PORT to a free"):
            ports.require_free(port, ports.LOOPBACK, "FINITY_AUTH_PORT")
        assert ports.free_port(port) != port
    assert ports.free_port(port) == port


def test_free_ports_differ_and_none_is_one_that_outgoing_connections_take() -> None:
    found = set(ports.free_ports(20))
    assert len(found) == 20
    assert max(found) < 32_768


def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who was given one may not listen there yet; a remembered port is given too."""
    claims = (tmp_path / "claims").open("w")
    one, other = next(
        (port, port + 1)
        for port in range(25_000, 32_000)
        if ports.is_free(port) and ports.is_free(port + 1)
    )
    monkeypatch.setattr(ports, "_given", set())
    monkeypatch.setattr(ports, "_claims", claims.fileno)
    monkeypatch.setattr(ports, "_LOWEST", one)
    monkeypatch.setattr(ports, "_EPHEMERAL", other + 1)
    assert ports.free_port(other) == other
    assert ports.free_port() == one
    with claims, pytest.raises(SuiteError, match="No free ports"):
        ports.free_port()


def test_a_port_is_given_to_one_process() -> None:
    """Whoever was given one may not listen there yet: nobody else is given it, till they end."""
    giving = "from suite.ports import free_port; print(free_port(), flush=True); input()"
    other = subprocess.Popen(  # noqa: S603 - our own
        [sys.executable, "-c", giving], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert ports.is_free(port)
        assert ports.free_port(port) != port
        other.communicate("\n")
    assert ports.free_port(port) == port


@pytest.mark.parametrize("obstacle", ["symlink", "folder", "nowhere"])
def test_without_claims_ports_are_given(
    obstacle: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody who puts something in the place of the file keeps a suite from starting."""
    file = tmp_path / f"finity-ports-{os.getuid()}"
    if obstacle == "symlink":
        file.symlink_to(tmp_path / "elsewhere")
    if obstacle == "folder":
        file.mkdir()
    folder = tmp_path / "nowhere" if obstacle == "nowhere" else tmp_path
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(ports, "_claims", ports._claims.__wrapped__)
    assert ports._claims() is None
    assert len(set(ports.free_ports(5))) == 5
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux tells who listens.")
def test_who_listens_is_known() -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        other = subprocess.Popen(["/bin/sleep", "60"])
        try:
            assert ports.is_listening(os.getpid(), port)
            assert not ports.is_listening(other.pid, port)
        finally:
            other.kill()
            other.wait()
    assert not ports.is_listening(os.getpid(), port)


def test_a_setting_that_is_no_port_is_refused() -> None:
    with pytest.raises(SuiteError, match="FINITY_USAGE_PORT must be a port"):
        addresses.from_environment({"FINITY_USAGE_PORT": "70000"})


def test_zero_takes_a_free_port_and_switches_metrics_off() -> None:
    found = addresses.from_environment(
        {"FINITY_AUTH_PORT": "0", "FINITY_AUTH_METRICS_PORT": "0", "FINITY_HOST": "::"}
    )
    assert ports.is_free(found.ports["FINITY_AUTH_PORT"])
    assert found.ports["FINITY_AUTH_METRICS_PORT"] == 0
    assert found.environment()["FINITY_AUTH_ADDRESS"].startswith("127.0.0.1:")
