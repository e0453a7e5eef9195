"""
A stand-in for GitHub on loopback: its token endpoint and the two calls of its API.

Codes and access tokens say themselves whom they are for, so that any process can
serve them, and a code may be used twice: that nobody does is for us to see to.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

CLIENT_ID = "finity-at-github"
CLIENT_SECRET = "known to the stand-in"
REDIRECT_URI = "https://app.example.com/signed-in"


@dataclass
class GitHub:
    """The running stand-in; what it is told here changes its answers."""

    port: int
    exchanges: int = 0
    """Codes that were exchanged."""
    tokens_answer: bytes | None = None
    """Sent for every exchange in place of the right answer, head and all."""
    silent_seconds: float = 0.0
    """How long it thinks before each answer."""
    calls: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def setting(self) -> dict[str, Any]:
        """An entry of FINITY_OAUTH_PROVIDERS."""
        return {
            "preset": "github",
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "redirect_uri": [REDIRECT_URI, "http://127.0.0.1/cb"],
            "base_url": self.url,
            "api_url": self.url,
        }


@dataclass(frozen=True)
class Person:
    """Somebody with an account at the stand-in."""

    id: int = field(default_factory=lambda: secrets.randbelow(10**9) + 1)
    email: str = field(default_factory=lambda: f"{secrets.token_hex(8)}@example.com")
    verified: bool = True


def consent(authorization_url: str, person: Person) -> tuple[str, str]:
    """What the person's browser brings back: code and state."""
    asked = {
        name: values[0] for name, values in parse_qs(urlsplit(authorization_url).query).items()
    }
    assert asked["client_id"] == CLIENT_ID
    assert asked["code_challenge_method"] == "S256"
    assert asked["scope"] == "read:user user:email"
    known = {
        "id": person.id,
        "email": person.email,
        "verified": person.verified,
        "challenge": asked["code_challenge"],
        "redirect_uri": asked["redirect_uri"],
    }
    return _seal(known), asked["state"]


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[GitHub]:
    """Serves on a free port until the end of the block."""
    github = GitHub(0)

    answering: set[asyncio.Task[Any] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            request, *lines = head.split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await asyncio.sleep(github.silent_seconds)
            writer.write(_answer(github, request, head, body.decode()))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        github.port = server.sockets[0].getsockname()[1]
        yield github
        late = [task for task in answering if task and not task.done()]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def _answer(github: GitHub, request: str, head: str, body: str) -> bytes:
    method, target, _ = request.split(" ")
    path = target.partition("?")[0]
    github.calls.append(f"{method} {path}")
    if path == "/login/oauth/access_token":
        github.exchanges += 1
        if github.tokens_answer is not None:
            return github.tokens_answer
        return answer(200, _exchange(_single(body)))
    person = _open(head.partition("Bearer ")[2].partition("\r\n")[0])
    if path == "/user":
        return answer(200, {"id": person["id"], "login": "octocat", "email": "spoofed@example.com"})
    if path == "/user/emails":
        other = {"email": "other@example.com", "primary": False, "verified": True}
        primary = {"email": person["email"], "primary": True, "verified": person["verified"]}
        return answer(200, [other, primary])
    return answer(404, {"message": "Not Found"})


def _exchange(form: dict[str, str]) -> dict[str, str]:
    if (form["client_id"], form["client_secret"]) != (CLIENT_ID, CLIENT_SECRET):
        return {"error": "incorrect_client_credentials"}
    try:
        known = _open(form["code"])
    except ValueError:
        return {"error": "bad_verification_code"}
    challenge = hashlib.sha256(form["code_verifier"].encode()).digest()
    if base64.urlsafe_b64encode(challenge).decode().rstrip("=") != known["challenge"]:
        return {"error": "bad_verification_code"}
    if form["redirect_uri"] != known["redirect_uri"]:
        return {"error": "redirect_uri_mismatch"}
    return {"access_token": _seal(known), "token_type": "bearer", "scope": "user:email"}


def answer(status: int, document: object) -> bytes:
    """An HTTP answer with a JSON body."""
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _seal(known: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(known).encode()).decode()


def _open(text: str) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text))
    return known


def _single(query: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(query).items()}
