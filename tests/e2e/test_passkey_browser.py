"""Passkeys made and shown by a real browser, over its DevTools protocol."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from finity.auth.v1 import mfa_pb2, mfa_pb2_grpc
from websockets.asyncio.client import ClientConnection, connect

from suite.ports import free_port
from tests.factories import eventually
from tests.fakes import FakeClock
from tests.running import open_house

BROWSER = shutil.which("chromium")
START_SECONDS = 60
# A platform authenticator whose owner always says yes.
AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}
CREATE = """
navigator.credentials
  .create({publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(%s)})
  .then(made => JSON.stringify(made.toJSON()))"""
GET = """
navigator.credentials
  .get({publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(%s)})
  .then(shown => JSON.stringify(shown.toJSON()))"""


class Page:
    """A page of the browser with an authenticator beside it."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session = ""

    async def open(self, url: str) -> None:
        """Opens a page and gives it an authenticator."""
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        await self.send("WebAuthn.enable")
        await self.send("WebAuthn.addVirtualAuthenticator", options=AUTHENTICATOR)
        await self.send("Page.enable")
        await self.send("Page.navigate", url=url)

        async def there() -> bool:
            state = await self.run("document.readyState + location.origin")
            return bool(state == f"complete{url}")

        await eventually(there, seconds=START_SECONDS)

    async def run(self, script: str) -> Any:
        """Runs a script in the page and returns what it comes to."""
        answer = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        await self._socket.send(json.dumps(command))
        async with asyncio.timeout(START_SECONDS):
            while True:
                answer = json.loads(await self._socket.recv())
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    return dict(answer["result"])


@pytest.fixture
async def origin() -> AsyncIterator[str]:
    """The origin of an empty page."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n"
            writer.write(head + b"content-length: 15\r\n\r\n<!doctype html>")
            await writer.drain()
        writer.close()

    port = free_port()
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    yield f"http://localhost:{port}"
    server.close()


@pytest.fixture
async def page(tmp_path: Path, origin: str) -> AsyncIterator[Page]:
    """The empty page in a browser of its own."""
    if BROWSER is None:
        pytest.skip("Chromium is not installed: no real browser can show a passkey.")
    browser = await asyncio.create_subprocess_exec(
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-proxy-server",
        "--remote-debugging-port=0",
        f"--user-data-dir={tmp_path}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port, path = await devtools(tmp_path / "DevToolsActivePort")
        async with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as socket:
            shown = Page(socket)
            await shown.open(origin)
            yield shown
    finally:
        # Its helpers are processes of the same group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(browser.pid, signal.SIGKILL)
        await browser.wait()


async def devtools(file: Path) -> tuple[str, str]:
    """Returns port and path of the DevTools, once the browser has written them."""

    async def lines() -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            found = await asyncio.to_thread(file.read_text)
            return found.split() if len(found.split()) == 2 else []
        return []

    await eventually(lines, seconds=START_SECONDS)
    port, path = await lines()
    return port, path


async def test_a_browser_makes_a_passkey_and_signs_in_with_it(
    database_url: str, redis_url: str, clock: FakeClock, page: Page, origin: str
) -> None:
    """What Chromium's own authenticator makes of our options is a passkey of two factors."""
    async with open_house(
        database_url, redis_url, "native", clock, webauthn_origins=(origin,)
    ) as house:
        calls = mfa_pb2_grpc.MfaServiceStub(house.auth_channel)
        person = await house.person()
        start = mfa_pb2.StartPasskeyRegistrationRequest()
        started = await calls.StartPasskeyRegistration(start, metadata=person.metadata)
        made = await page.run(CREATE % started.options_json)
        finish = mfa_pb2.FinishPasskeyRegistrationRequest(credential_json=made, name="browser")
        registered = await calls.FinishPasskeyRegistration(finish, metadata=person.metadata)
        assert len(registered.recovery_codes) == 10
        for _ in range(2):
            asked = await calls.StartPasskeyAssertion(mfa_pb2.StartPasskeyAssertionRequest())
            shown = await page.run(GET % asked.options_json)
            request = mfa_pb2.SignInWithPasskeyRequest(credential_json=shown, device="browser")
            done = await calls.SignInWithPasskey(request)
            assert done.user.user_id == person.user_id
