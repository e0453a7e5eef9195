"""
HTTP to identity providers, bounded in everything.

No redirect is followed, no proxy is taken from the environment, and an answer
that is late, large or not JSON is as good as none.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import structlog

from services.auth.errors import OAuthProviderUnavailable

# For one request, from connecting to the last byte.
REQUEST_SECONDS = 5.0
MOST_BYTES = 256 * 1024
MOST_CONNECTIONS = 50
RETRY_SECONDS = 5.0
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reply:
    """A provider's answer: 2xx or 4xx, and a JSON document."""

    ok: bool
    document: Any

    @property
    def error(self) -> str:
        """The "error" of an OAuth 2.0 answer (RFC 6749 section 5.2), fit for a log line."""
        error = self.document.get("error") if isinstance(self.document, dict) else None
        return error[:50] if isinstance(error, str) and error.isprintable() else ""


class Web:
    """Sends requests to providers."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def get(self, url: str, *, token: str = "", accept: str = "application/json") -> Reply:
        """Reads a document, with an access token if one is given."""
        headers = {"accept": accept}
        if token:
            headers["authorization"] = f"Bearer {token}"
        return await self._send("GET", url, headers, None, None)

    async def post(
        self, url: str, form: Mapping[str, str], *, basic: tuple[str, str] | None = None
    ) -> Reply:
        """Sends a form, with HTTP Basic credentials if they are given."""
        auth = httpx.BasicAuth(*basic) if basic else None
        return await self._send("POST", url, {"accept": "application/json"}, form, auth)

    async def _send(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        form: Mapping[str, str] | None,
        auth: httpx.BasicAuth | None,
    ) -> Reply:
        # What is bounded is what comes in: nothing is unpacked here.
        headers["accept-encoding"] = "identity"
        host = urlsplit(url).hostname or ""
        try:
            async with (
                asyncio.timeout(REQUEST_SECONDS),
                self._client.stream(method, url, headers=headers, data=form, auth=auth) as response,
            ):
                body = await _read(response)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TimeoutError, OSError) as error:
            raise unavailable(host, type(error).__name__) from error
        if not (response.is_success or response.is_client_error):
            raise unavailable(host, f"status {response.status_code}")
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS or len(body) > MOST_BYTES:
            raise unavailable(host, "too much")
        try:
            return Reply(response.is_success, json.loads(body))
        except (ValueError, RecursionError) as error:
            raise unavailable(host, "not JSON") from error


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MOST_BYTES:
            break
    return bytes(body)


@contextlib.asynccontextmanager
async def open_web() -> AsyncIterator[Web]:
    """The one client of the process; no cookie of a provider is kept."""
    async with httpx.AsyncClient(
        trust_env=False,
        follow_redirects=False,
        timeout=REQUEST_SECONDS,
        limits=httpx.Limits(max_connections=MOST_CONNECTIONS),
    ) as client:
        yield Web(client)


def unavailable(host: str, why: str) -> OAuthProviderUnavailable:
    """Logs why a provider is of no use now; returns the refusal that does not say it."""
    _log.warning("identity provider failed", host=host, why=why)
    return OAuthProviderUnavailable(retry_after=RETRY_SECONDS)
