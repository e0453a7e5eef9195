"""An administrator's day in JSON, through the real gateway to the real processes."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from suite import state
from suite.addresses import free
from suite.demo.client import Gateway, Json, Refused
from suite.stack import Stack
from tests.factories import an_address
from tests.running import PASSWORD
from tests.suite.terminal import finity, plain_environment, wait_for


@pytest.fixture(scope="module")
def stack(stores: dict[str, str]) -> Iterator[Stack]:
    """The suite as processes of its own, on a database of its own."""
    with state.scratch("finity admin ") as directory:
        environment = plain_environment(directory, **stores)
        with Stack(directory, environment=environment, addresses=free(), durable=False) as running:
            yield running


def log_in(gateway: Gateway, email: str, password: str = PASSWORD) -> Json:
    body = {"email": email, "password": password}
    tokens: Json = gateway.post("/v1/sessions", body)["tokens"]
    return tokens


def reason_of(gateway: Gateway, path: str, token: str) -> str:
    """The reason a read is refused for, "" if it is answered."""
    try:
        gateway.get(path, token)
    except Refused as refused:
        return refused.reason
    return ""


def until_revoked(gateway: Gateway, path: str, token: str) -> None:
    wait_for(lambda: reason_of(gateway, path, token) == "TOKEN_REVOKED")


def test_an_administrator_s_day(stack: Stack) -> None:
    """Search, ban with an end, unban, impersonate, end sessions, read the log, verify it."""
    gateway = Gateway(stack.gateway_url)
    credentials = stack.credentials
    me = log_in(gateway, credentials.admin_email, credentials.admin_password)["access_token"]
    email = an_address()
    user_id = gateway.post("/v1/users", {"email": email, "password": PASSWORD})["user"]["user_id"]
    theirs = log_in(gateway, email)["access_token"]
    wait_for(lambda: reason_of(gateway, "/v1/users/me/balance", theirs) == "")

    found = gateway.get("/v1/users:search", me, email_prefix=email[:10].upper(), page_size=5)
    assert [entry["user"]["user_id"] for entry in found["users"]] == [user_id]
    assert found["users"][0]["state"] == "USER_STATE_ACTIVE"

    until = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    body = {"reason": "spam", "expire_time": until}
    banned = gateway.post(f"/v1/users/{user_id}:ban", body, me)["user"]
    assert (banned["state"], banned["ban_expire_time"]) == ("USER_STATE_BANNED", until)
    until_revoked(gateway, "/v1/users/me", theirs)
    until_revoked(gateway, "/v1/users/me/balance", theirs)
    with pytest.raises(Refused) as refused:
        log_in(gateway, email)
    assert (refused.value.http, refused.value.reason) == (401, "LOGIN_FAILED")
    gateway.post(f"/v1/users/{user_id}:unban", {"reason": "a mistake"}, me)
    theirs = log_in(gateway, email)["access_token"]

    acting = gateway.post(f"/v1/users/{user_id}:impersonate", {"reason": "ticket 7"}, me)
    token = acting["tokens"]["access_token"]
    assert gateway.get("/v1/users/me", token)["user"]["email"] == email
    assert gateway.get("/v1/users/me/balance", token)["balance"]["available"] == "100"
    assert reason_of(gateway, "/v1/admin/logs", token) == "ACCESS_DENIED"

    ended = gateway.post(f"/v1/users/{user_id}:revokeSessions", {"reason": "ticket 7"}, me)
    assert ended["ended_sessions"] == 2
    until_revoked(gateway, "/v1/users/me", theirs)
    until_revoked(gateway, "/v1/users/me", token)

    log = gateway.get("/v1/admin/logs", me, target_user_id=user_id)["logs"]
    done = ["revoke_sessions", "impersonate_user", "unban_user", "ban_user"]
    assert [entry["action"] for entry in log] == done
    assert {entry["actor"] for entry in log} == {f"user:{admin_id(gateway, me)}"}
    assert email not in str(log)
    verified = finity(stack.directory, "audit", "verify")
    # The first entry made this administrator one.
    assert (verified.returncode, verified.stdout.splitlines()[0]) == (
        0,
        f"5 entries, chain whole, head {log[0]['hash'][:12]}",
    )


def admin_id(gateway: Gateway, token: str) -> str:
    return str(gateway.get("/v1/users/me", token)["user"]["user_id"])


def test_a_user_administers_nothing(stack: Stack) -> None:
    """Every route of the contract is ACCESS_DENIED, HTTP 403, for somebody who is not an admin."""
    gateway, email = Gateway(stack.gateway_url), an_address()
    user_id = gateway.post("/v1/users", {"email": email, "password": PASSWORD})["user"]["user_id"]
    mine = log_in(gateway, email)["access_token"]
    for verb in ("ban", "unban", "impersonate", "revokeSessions"):
        with pytest.raises(Refused) as refused:
            gateway.post(f"/v1/users/{user_id}:{verb}", {"reason": "me"}, mine)
        assert (refused.value.http, refused.value.reason) == (403, "ACCESS_DENIED")
    for path in ("/v1/users:search", "/v1/admin/logs"):
        assert reason_of(gateway, path, mine) == "ACCESS_DENIED"
