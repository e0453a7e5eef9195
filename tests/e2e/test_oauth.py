"""Signing in with an identity provider as a web client does: JSON through the real gateway."""

import json
import secrets
from collections.abc import Iterator

import httpx
import pytest

from suite import state
from suite.addresses import free
from suite.stack import Stack
from tests.oidc.provider import REDIRECT_URI, serving, visit
from tests.owner import connect_owner, verify_address
from tests.suite.terminal import plain_environment

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def stack(stores: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The suite as processes of its own, beside a certified provider."""
    with (
        serving(request.config.cache.mkdir("identity-provider")) as provider,
        state.scratch("finity oauth ") as directory,
    ):
        settings = {"FINITY_OAUTH_PROVIDERS": json.dumps(provider.settings()), **stores}
        environment = plain_environment(directory, **settings)
        with Stack(directory, environment=environment, addresses=free(), durable=False) as running:
            yield running


def body_of(flow: str, came: dict[str, str]) -> dict[str, str]:
    return {
        "flow": flow,
        "authorization_code": came["code"],
        "state": came["state"],
        "iss": came["iss"],
    }


async def test_a_person_with_a_password_and_two_identities(stack: Stack) -> None:
    """Refused by address, linked, signed in, listed, and taken off but for what is needed."""
    name, other = (f"p-{secrets.token_hex(6)}" for _ in range(2))
    where = {"provider": "finity", "redirect_uri": REDIRECT_URI}
    email = f"{name}@example.com"
    async with httpx.AsyncClient(base_url=stack.gateway_url, trust_env=False, timeout=60) as client:

        async def go(path: str, body: dict[str, str], token: str = "") -> httpx.Response:
            headers = {"authorization": f"Bearer {token}"} if token else {}
            return await client.post(path, json=body, headers=headers)

        async def sign_in(who: str) -> httpx.Response:
            started = (await go("/v1/oauth:startSignIn", where)).json()
            came = await visit(started["authorization_url"], who)
            return await go("/v1/oauth:finishSignIn", body_of(started["flow"], came))

        account = {"email": email, "password": PASSWORD}
        registered = (await go("/v1/users", account)).json()["user"]
        refused = await sign_in(name)
        assert refused.status_code == httpx.codes.CONFLICT
        assert refused.json()["details"][0]["reason"] == "ACCOUNT_EXISTS_LINK_REQUIRED"

        async with connect_owner(stack.database_url) as owner:
            await verify_address(owner, registered["user_id"])
        token = (await go("/v1/sessions", account)).json()["tokens"]["access_token"]
        started = (await go("/v1/identities:startLinking", where, token)).json()
        came = await visit(started["authorization_url"], name)
        linked = await go("/v1/identities:finishLinking", body_of(started["flow"], came), token)
        identity = linked.json()["identity"]
        assert identity["email"] == email

        signed = (await sign_in(name)).json()
        assert signed["user"]["user_id"] == registered["user_id"]
        token = signed["tokens"]["access_token"]
        headers = {"authorization": f"Bearer {token}"}
        listed = (await client.get("/v1/identities", headers=headers)).json()
        assert [one["identity_id"] for one in listed["identities"]] == [identity["identity_id"]]
        unlinked = await go(f"/v1/identities/{identity['identity_id']}:unlink", {}, token)
        assert unlinked.status_code == httpx.codes.OK

        new = (await sign_in(other)).json()
        assert (new["registered"], new["user"]["email_verified"]) == (True, True)
        token = new["tokens"]["access_token"]
        headers = {"authorization": f"Bearer {token}"}
        (only,) = (await client.get("/v1/identities", headers=headers)).json()["identities"]
        kept = await go(f"/v1/identities/{only['identity_id']}:unlink", {}, token)
        assert kept.status_code == httpx.codes.BAD_REQUEST
        assert kept.json()["details"][0]["reason"] == "LAST_SIGN_IN_METHOD"


async def test_a_flow_that_is_forged_is_unauthenticated(stack: Stack) -> None:
    """The refusal is the gateway's usual document."""
    async with httpx.AsyncClient(base_url=stack.gateway_url, trust_env=False, timeout=60) as client:
        forged = body_of("A" * 43, {"code": "c", "state": "s", "iss": ""})
        refused = await client.post("/v1/oauth:finishSignIn", json=forged)
        assert refused.status_code == httpx.codes.UNAUTHORIZED
        assert refused.json()["details"][0]["reason"] == "OAUTH_STATE_INVALID"
        incomplete = {"flow": "A" * 43, "state": "s"}
        refused = await client.post("/v1/oauth:finishSignIn", json=incomplete)
        assert refused.json()["details"][0]["reason"] == "INVALID_REQUEST"


def test_the_lock_names_no_download_address() -> None:
    lock = (state.ROOT / "tests" / "oidc" / "package-lock.json").read_text()
    assert '"integrity"' in lock
    assert '"resolved"' not in lock
