"""The calls the README prints: curl through the gateway, Python and Node straight to a service."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from suite import state
from suite.addresses import free
from suite.credentials import DEVELOPER
from suite.stack import Stack
from suite.state import ROOT
from tests.suite.terminal import plain_environment

REGISTER = """
USER_ID=$(curl -s $GATEWAY/v1/users -H 'content-type: application/json' \
  -d '{"email": "ada@example.com", "password": "correct horse"}' \
  | sed -nE 's/.*"user_id": *"([^"]+)".*/\\1/p')
echo $USER_ID
"""
BALANCE = (
    'curl -s $GATEWAY/v1/users/$USER_ID/balance -H "authorization: Bearer $FINITY_SERVICE_KEY"'
)
RECORDED = r"recorded [0-9a-f-]{14}7[0-9a-f-]{21}: 3 spent, (\d+) left\n"


@pytest.fixture(scope="module")
def stack(stores: dict[str, str]) -> Iterator[Stack]:
    """The suite as processes of its own, on a database of its own."""
    with state.scratch("finity clients ") as directory:
        environment = plain_environment(directory, **stores)
        with Stack(directory, environment=environment, addresses=free(), durable=False) as running:
            yield running


@pytest.fixture(scope="module")
def shell(stack: Stack) -> dict[str, str]:
    """The environment of a reader who followed the README; USER_ID is theirs."""
    environment = os.environ | {
        "GATEWAY": stack.gateway_url,
        "FINITY_USAGE_ADDRESS": stack.address("usage"),
        "FINITY_SERVICE_KEY": stack.credentials.service_keys[DEVELOPER],
    }
    user_id = run(["/bin/sh", "-c", REGISTER], environment).stdout.strip()
    assert re.fullmatch(r"[0-9a-f-]{36}", user_id)
    return environment | {"USER_ID": user_id}


@pytest.fixture(scope="module")
def node_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node example with its packages, in a copy: the checkout stays as it is."""
    if not shutil.which("npm"):
        pytest.skip("Node and npm are not installed: the Node example cannot run.")
    copy = tmp_path_factory.mktemp("checkout")
    source = ROOT / "examples" / "node_client"
    client = copy / "examples" / "node_client"
    shutil.copytree(source, client, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "gen").mkdir()
    shutil.copy(ROOT / "gen" / "finity.binpb", copy / "gen")
    installed = run(["npm", "ci", "--no-audit", "--no-fund", "--prefix", str(client)], os.environ)
    assert installed.returncode == 0, installed.stderr
    return client / "record_usage.js"


def run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - the README's own commands
        command,
        env=dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def python(shell: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join([str(ROOT), str(ROOT / "gen")])
    return run(
        [sys.executable, "examples/python_client.py", *arguments], shell | {"PYTHONPATH": search}
    )


def test_curl_reads_the_balance_through_the_gateway(shell: dict[str, str]) -> None:
    until = time.monotonic() + 30
    while True:
        answered = run(["/bin/sh", "-c", BALANCE], shell)
        # The account opens moments after the registration, by an event.
        if "ACCOUNT_NOT_OPEN" not in answered.stdout or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert f'"user_id":"{shell["USER_ID"]}"' in answered.stdout
    assert '"granted":"100"' in answered.stdout


def test_python_records_usage_and_reads_the_reason_of_a_refusal(shell: dict[str, str]) -> None:
    recorded = python(shell, shell["USER_ID"], "3")
    assert re.fullmatch(RECORDED, recorded.stdout), recorded
    refused = python(shell, shell["USER_ID"], "3000")
    assert refused.returncode == 1
    assert re.fullmatch(
        r"refused: FAILED_PRECONDITION NO_CREDITS balance=\d+ credits=3000 short_by=\d+\n",
        refused.stderr,
    )
    keyless = python(shell | {"FINITY_SERVICE_KEY": "wrong"}, shell["USER_ID"])
    assert keyless.stderr == "refused: UNAUTHENTICATED CREDENTIALS_INVALID\n"
    nobody = {"FINITY_USAGE_ADDRESS": f"127.0.0.1:{free().gateway_port}"}
    assert python(shell | nobody, shell["USER_ID"]).stderr.startswith("failed: UNAVAILABLE: ")


def test_node_does_the_same(shell: dict[str, str], node_script: Path) -> None:
    recorded = run(["node", str(node_script), shell["USER_ID"], "3"], shell)
    assert re.fullmatch(RECORDED, recorded.stdout), recorded
    refused = run(["node", str(node_script), shell["USER_ID"], "3000"], shell)
    assert refused.returncode == 1
    assert re.fullmatch(
        r"refused: FAILED_PRECONDITION NO_CREDITS balance=\d+ credits=3000 short_by=\d+\n",
        refused.stderr,
    )
    keyless = run(
        ["node", str(node_script), shell["USER_ID"]], shell | {"FINITY_SERVICE_KEY": "wrong"}
    )
    assert keyless.stderr == "refused: UNAUTHENTICATED CREDENTIALS_INVALID\n"
    nobody = {"FINITY_USAGE_ADDRESS": f"127.0.0.1:{free().gateway_port}"}
    failed = run(["node", str(node_script), shell["USER_ID"]], shell | nobody)
    assert failed.stderr.startswith("failed: UNAVAILABLE: ")


def test_the_lock_names_no_download_address() -> None:
    lock = (ROOT / "examples" / "node_client" / "package-lock.json").read_text()
    assert '"integrity"' in lock
    assert '"resolved"' not in lock
