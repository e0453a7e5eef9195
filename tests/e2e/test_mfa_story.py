"""A second step of signing in, in JSON through the gateway of the whole suite."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pyotp
import pytest

from suite import state
from suite.addresses import free
from suite.stack import Stack
from tests.owner import connect_owner, verify_address
from tests.suite.terminal import plain_environment

ADA = {"email": "ada@example.com", "password": "correct horse battery"}


@pytest.fixture
def suite(stores: dict[str, str]) -> Iterator[tuple[httpx.Client, str]]:
    """A client of the suite's gateway, and the database of its own."""
    with state.scratch("finity mfa ") as directory:
        environment = plain_environment(directory, **stores)
        with (
            Stack(directory, environment=environment, addresses=free(), durable=False) as stack,
            httpx.Client(base_url=stack.gateway_url, timeout=20, trust_env=False) as client,
        ):
            yield client, stack.database_url


async def prove_address(database_url: str, user_id: str) -> None:
    async with connect_owner(database_url) as owner:
        await verify_address(owner, user_id)


def test_a_sign_in_in_two_steps(suite: tuple[httpx.Client, str]) -> None:
    """Enrol, confirm, log in, be held back, complete, look, step up, switch it off."""

    gateway, database_url = suite

    def call(path: str, body: dict[str, Any], token: str = "") -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return gateway.post(path, json=body, headers=headers)

    def code(steps: int) -> str:
        return totp.at(datetime.now(UTC), counter_offset=steps)

    registered = call("/v1/users", ADA).json()["user"]
    asyncio.run(prove_address(database_url, registered["user_id"]))
    token = call("/v1/sessions", ADA).json()["tokens"]["access_token"]
    totp = pyotp.TOTP(call("/v1/mfa/totp:enrol", {}, token).json()["secret"])
    # The step before is good as long as this one lasts: not on its last seconds.
    while datetime.now(UTC).timestamp() % totp.interval > 20:
        time.sleep(0.1)
    confirmed = call("/v1/mfa/totp:confirm", {"totp_code": code(-1)}, token)
    assert len(confirmed.json()["recovery_codes"]) == 10

    held = call("/v1/sessions", ADA)
    assert held.status_code == 401
    (info,) = [one for one in held.json()["details"] if one["@type"].endswith("ErrorInfo")]
    assert (info["reason"], info["domain"]) == ("MFA_REQUIRED", "auth.finity")
    assert info["metadata"]["methods"] == "totp,recovery_code"
    answer = {"challenge": info["metadata"]["challenge"], "totp_code": code(0)}
    completed = call("/v1/sessions:complete", answer)
    completed.raise_for_status()
    assert completed.json()["user"]["mfa_enabled"] is True
    again = call("/v1/sessions:complete", answer)
    assert (again.status_code, again.json()["details"][0]["reason"]) == (
        401,
        "MFA_CHALLENGE_INVALID",
    )

    token = completed.json()["tokens"]["access_token"]
    listed = gateway.get("/v1/users/me/factors", headers={"authorization": f"Bearer {token}"})
    assert [factor["kind"] for factor in listed.json()["factors"]] == ["FACTOR_KIND_TOTP"]
    assert listed.json()["recovery_codes_left"] == 10
    raised = call("/v1/sessions:stepUp", {"totp_code": code(1)}, token)
    raised.raise_for_status()
    call("/v1/mfa/totp:disable", {}, raised.json()["access_token"]).raise_for_status()
    call("/v1/sessions", ADA).raise_for_status()
