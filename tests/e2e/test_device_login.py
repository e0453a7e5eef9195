"""A plugin logs in, over JSON through the gateway and as the example does it; its user approves."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import httpx
import pytest
from finity.auth.v1 import auth_pb2, auth_pb2_grpc
from grpc import aio

from suite import state
from suite.addresses import free
from suite.stack import Stack
from suite.state import ROOT
from tests.factories import an_address
from tests.running import PASSWORD, Metadata, bearer
from tests.suite.terminal import plain_environment

OK = 200
LETTERS = "[BCDFGHJKLMNPQRSTVWXZ]{4}"


@pytest.fixture(scope="module")
def stack(stores: dict[str, str]) -> Iterator[Stack]:
    """The suite as processes of its own, on a database of its own."""
    with state.scratch("finity devices ") as directory:
        environment = plain_environment(directory, **stores)
        with Stack(directory, environment=environment, addresses=free(), durable=False) as running:
            yield running


@asynccontextmanager
async def ada(channel: aio.Channel) -> AsyncIterator[tuple[str, Metadata]]:
    """A user who is logged in on a device with a keyboard."""
    auth, email = auth_pb2_grpc.AuthServiceStub(channel), an_address()
    await auth.Register(auth_pb2.RegisterRequest(email=email, password=PASSWORD))
    login = await auth.Login(auth_pb2.LoginRequest(email=email, password=PASSWORD))
    yield email, bearer(login.tokens.access_token)


def reason(answer: httpx.Response) -> tuple[int, str]:
    """Returns status and ErrorInfo.reason of a refusal."""
    (info,) = (one for one in answer.json()["details"] if one["@type"].endswith("ErrorInfo"))
    return answer.status_code, info["reason"]


async def decide(page: httpx.AsyncClient, verb: str, user_code: str, me: Metadata) -> Any:
    """Inspects, approves or denies what asks, as a page of the product does."""
    path, body = f"/v1/device-logins:{verb}", {"user_code": user_code}
    answer = await page.post(path, json=body, headers=dict(me))
    assert answer.status_code == OK, answer.text
    return answer.json()


async def approve(page: httpx.AsyncClient, user_code: str, me: Metadata) -> dict[str, Any]:
    """Looks at what asks, then lets it in; returns what it saw."""
    shown: dict[str, Any] = (await decide(page, "inspect", user_code, me))["login"]
    assert await decide(page, "approve", user_code, me) == {"login": shown}
    return shown


async def test_a_plugin_logs_in_over_json(stack: Stack) -> None:
    """The plugin polls through the gateway, and its user's page approves through it."""
    async with (
        aio.insecure_channel(stack.address("auth")) as channel,
        httpx.AsyncClient(base_url=stack.gateway_url, timeout=60) as plugin,
        httpx.AsyncClient(base_url=stack.gateway_url, timeout=60) as page,
        ada(channel) as (email, me),
    ):
        asked = await plugin.post("/v1/device-logins", json={"client_name": "Chrome plugin"})
        started: dict[str, Any] = asked.json()
        assert re.fullmatch(f"{LETTERS}-{LETTERS}", started["user_code"])
        assert started["verification_uri_complete"].endswith(started["user_code"])
        code = {"device_code": started["device_code"]}
        pending = await plugin.post("/v1/device-logins:poll", json=code)
        assert reason(pending) == (400, "AUTHORIZATION_PENDING")
        early = await plugin.post("/v1/device-logins:poll", json=code)
        assert reason(early) == (429, "SLOW_DOWN")

        shown = await approve(page, started["user_code"].lower(), me)
        assert shown["client_name"] == "Chrome plugin"
        # For a client on the same machine Envoy names the machine.
        assert ip_address(shown["address"])
        await asyncio.sleep(2 * started["interval"])
        opened = (await plugin.post("/v1/device-logins:poll", json=code)).json()
        assert opened["user"]["email"] == email
        mine = {"authorization": f"Bearer {opened['tokens']['access_token']}"}
        assert (await plugin.get("/v1/users/me", headers=mine)).json()["user"] == opened["user"]
        again = await plugin.post("/v1/device-logins:poll", json=code)
        assert reason(again) == (401, "DEVICE_CODE_INVALID")


async def test_the_example_logs_in_and_hears_of_a_denial(stack: Stack) -> None:
    """It prints the code, waits, and says who it is; denied, it says so and fails."""
    async with (
        aio.insecure_channel(stack.address("auth")) as channel,
        httpx.AsyncClient(base_url=stack.gateway_url, timeout=60) as page,
        ada(channel) as (email, me),
    ):
        approved, denied = await example(stack, "One"), await example(stack, "Two")
        assert (await approve(page, await code_of(approved), me))["client_name"] == "One"
        assert await decide(page, "deny", await code_of(denied), me) == {}
        said, _ = await approved.communicate()
        assert re.fullmatch(f"logged in as {email} in session [0-9a-f-]{{36}}\n", said.decode())
        _, refusal = await denied.communicate()
        assert refusal.decode() == "refused: PERMISSION_DENIED DEVICE_DENIED\n"
        assert (approved.returncode, denied.returncode) == (0, 1)


async def example(stack: Stack, name: str) -> asyncio.subprocess.Process:
    """Starts the example as the README does."""
    environment = os.environ | {
        "FINITY_AUTH_ADDRESS": stack.address("auth"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "gen")]),
    }
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "examples/device_login.py",
        name,
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def code_of(running: asyncio.subprocess.Process) -> str:
    """Reads the code that the example shows."""
    assert running.stdout is not None
    line = (await asyncio.wait_for(running.stdout.readline(), 30)).decode()
    found = re.fullmatch(
        rf"open http://localhost:3000/device and type ({LETTERS}-{LETTERS})\n", line
    )
    assert found, line
    return found[1]
