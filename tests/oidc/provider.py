"""
A certified OpenID provider (npm `oidc-provider`) and the browser of somebody who signs in there.

Its packages are installed from the lock file beside this module at first use, into
a folder that test processes share; where that fails, the tests that need it fail.
"""

import contextlib
import hashlib
import html
import json
import re
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx

from suite.ports import free_port

HERE = Path(__file__).parent
FILES = ("package.json", "package-lock.json", ".npmrc", "provider.mjs")
REDIRECT_URI = "https://app.example.com/signed-in"
SECRET = "a client secret + of 40 characters: / &%41"
INSTALL_SECONDS = 180
READY_SECONDS, STARTS = 60, 2
# Client → how it authenticates at the token endpoint, and what its ID tokens are signed with.
CLIENTS = {
    "finity": ("client_secret_basic", "RS256"),
    "finity-post": ("client_secret_post", "ES256"),
    "finity-public": ("none", "EdDSA"),
    "finity-shared": ("client_secret_basic", "HS256"),
}


@dataclass(frozen=True, slots=True)
class OpenIdProvider:
    """The running provider."""

    port: int

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self) -> dict[str, dict[str, Any]]:
        """FINITY_OAUTH_PROVIDERS: each client as a provider of its own, of the client's name."""
        return {
            name: {
                "issuer": self.issuer,
                "client_id": name,
                "client_secret": "" if method == "none" else SECRET,
                "redirect_uri": REDIRECT_URI,
            }
            for name, (method, _) in CLIENTS.items()
        }


def installed(cache: Path) -> Path:
    """Returns a folder of the cache with the provider and its packages."""
    content = b"".join((HERE / name).read_bytes() for name in FILES)
    ready = cache / hashlib.sha256(content).hexdigest()[:16]
    if ready.exists():
        return ready
    fresh = Path(tempfile.mkdtemp(dir=cache))
    for name in FILES:
        shutil.copy(HERE / name, fresh)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(  # noqa: S603
        command, cwd=fresh, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    assert done.returncode == 0, f"npm ci failed: {done.stderr}"
    # Another test process may have been faster; both are the same.
    with contextlib.suppress(OSError):
        fresh.rename(ready)
    shutil.rmtree(fresh, ignore_errors=True)
    return ready


@contextlib.contextmanager
def serving(cache: Path, *, port: int = 0, **settings: Any) -> Iterator[OpenIdProvider]:
    """Serves until the end of the block; every start has new keys."""
    provider = OpenIdProvider(port or free_port())
    clients = [
        {
            "client_id": name,
            "redirect_uris": [REDIRECT_URI],
            "token_endpoint_auth_method": method,
            "id_token_signed_response_alg": algorithm,
        }
        | ({} if method == "none" else {"client_secret": SECRET})
        for name, (method, algorithm) in CLIENTS.items()
    ]
    told = json.dumps({"clients": clients, **settings})
    folder = installed(cache)
    with (folder / f"{provider.port}.log").open("w+") as log:
        command = ["node", "provider.mjs", str(provider.port), told]
        with _started(command, folder, log) as process:
            try:
                yield provider
            finally:
                process.terminate()


def _started(command: list[str], folder: Path, log: IO[str]) -> "subprocess.Popen[str]":
    """Starts a provider and returns it once it listens."""
    for _ in range(STARTS):
        process = subprocess.Popen(  # noqa: S603
            command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout
        if select.select([process.stdout], [], [], READY_SECONDS)[0]:
            said = process.stdout.readline()
            log.seek(0)
            assert said == "ready\n", log.read()
            return process
        # Node was seen to stand still while it made its keys.
        with process:
            process.kill()
    raise AssertionError(f"{STARTS} times no provider within {READY_SECONDS} s")


async def visit(authorization_url: str, name: str, *, consent: bool = True) -> dict[str, str]:
    """
    Follows a browser whose owner signs in as `name` and consents, or refuses.

    Returns the parameters that come back to REDIRECT_URI.
    """
    async with httpx.AsyncClient(trust_env=False, timeout=60) as browser:
        page = await browser.get(authorization_url)
        for _ in range(20):
            if page.is_redirect:
                target = urljoin(str(page.url), page.headers["location"])
                if target.startswith(REDIRECT_URI):
                    return dict(parse_qsl(urlsplit(target).query))
                page = await browser.get(target)
                continue
            assert page.status_code == httpx.codes.OK, page.text
            action = html.unescape(_found(r'action="([^"]+)"', page.text))
            prompt = _found(r'name="prompt" value="(\w+)"', page.text)
            if prompt == "consent" and not consent:
                page = await browser.get(f"{action}/abort")
            else:
                form = {"prompt": prompt, "login": name, "password": "any will do"}
                page = await browser.post(action, data=form)
    raise AssertionError("the provider sends the browser in circles")


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, text
    return match[1]
