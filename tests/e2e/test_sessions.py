"""A user's sessions and a rotation of keys, as JSON through the real gateway."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from suite import state
from suite.addresses import free
from suite.credentials import DEVELOPER
from suite.stack import Stack
from tests.factories import an_address
from tests.running import PASSWORD
from tests.suite.terminal import plain_environment


@pytest.fixture(scope="module")
def stack(stores: dict[str, str]) -> Iterator[Stack]:
    """The suite as processes of its own, on a database of its own."""
    with state.scratch("finity sessions ") as directory:
        environment = plain_environment(directory, **stores)
        with Stack(directory, environment=environment, addresses=free(), durable=False) as running:
            yield running


@pytest.fixture
def gateway(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.gateway_url, trust_env=False, timeout=20) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_user_looks_after_its_sessions(gateway: httpx.Client) -> None:
    """List, name, revoke, explain, revoke the others; a foreign session is 404."""
    login = {"email": an_address(), "password": PASSWORD}
    ok(gateway.post("/v1/users", json=login))
    here, laptop, phone = (
        ok(gateway.post("/v1/sessions", json={**login, "device": device}))["tokens"]
        for device in ("here", "laptop", "phone")
    )
    me, sessions = bearer(here["access_token"]), "/v1/users/me/sessions"
    listed = ok(gateway.get(sessions, headers=me))["sessions"]
    assert [session["device"] for session in listed] == ["phone", "laptop", "here"]
    assert [session["current"] for session in listed] == [False, False, True]
    named = gateway.post(f"{sessions}/current:name", headers=me, json={"device": "Ada's desk"})
    assert ok(named)["session"]["device"] == "Ada's desk"
    path = f"{sessions}/{laptop['session_id']}"
    assert ok(gateway.get(f"{path}:explain", headers=me))["alive"] is True
    ok(gateway.post(f"{path}:revoke", headers=me, json={}))
    told = ok(gateway.get(f"{path}:explain", headers=me))
    assert (told["alive"], told["ended_by"]) == (False, "SESSION_ENDER_USER")
    assert told["session"]["end_reason"] == "revoked_by_user"
    assert ok(gateway.post("/v1/sessions:revokeOthers", headers=me, json={}))["ended"] == 1
    refused = gateway.get("/v1/users/me", headers=bearer(phone["access_token"]))
    assert refused.status_code == 401
    foreign = gateway.get(f"{sessions}/{'0' * 8}-0000-0000-0000-{'0' * 12}:explain", headers=me)
    assert foreign.status_code == 404
    assert foreign.json()["details"][0]["reason"] == "SESSION_NOT_FOUND"


def test_keys_rotate_and_may_be_cached(gateway: httpx.Client, stack: Stack) -> None:
    """The new key is in the published set at once; caches may keep the set for 10 minutes."""
    service = bearer(stack.credentials.service_keys[DEVELOPER])
    before = ok(gateway.get("/.well-known/jwks.json"))["keys"]
    rotated = ok(gateway.post("/v1/signingKeys:rotate", headers=service, json={"reason": "yearly"}))
    answer = gateway.get("/.well-known/jwks.json")
    assert [key["kid"] for key in ok(answer)["keys"]] == [rotated["kid"], before[0]["kid"]]
    assert answer.headers["cache-control"] == "public, max-age=600"
