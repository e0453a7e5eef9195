"""Somebody leaves and returns, in JSON through the real gateway."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from suite.ports import free_port
from tests.factories import an_address, start_process
from tests.gateway.harness import Answer, Gateway, running
from tests.running import PASSWORD

START_SECONDS = 30


@pytest.fixture
async def gateway(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Gateway]:
    """The gateway in front of a running auth."""
    port = free_port()
    auth = await start_process("auth", database_url, redis_url, {}, port=port)
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=START_SECONDS
            )
        with running(tmp_path, auth_address=f"127.0.0.1:{port}") as served:
            yield served
    finally:
        await auth.kill()


async def test_somebody_leaves_and_returns(gateway: Gateway) -> None:
    """Register with an invitation, ask for the end, log in, see the day, export, stay."""
    email = an_address()

    async def call(method: str, path: str, body: Any = None, token: str = "") -> Answer:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await asyncio.to_thread(gateway.call, method, path, body, headers)

    who = {"email": email, "password": PASSWORD}
    registered = await call("POST", "/v1/users", {**who, "invite_token": "invited-by-grace"})
    user_id = registered.json["user"]["user_id"]
    token = (await call("POST", "/v1/sessions", who)).json["tokens"]["access_token"]
    pending = (await call("POST", "/v1/users/me:delete", {}, token)).json["user"]
    assert pending["purge_time"] > pending["delete_time"]
    again = (await call("POST", "/v1/sessions", who)).json
    assert again["user"]["purge_time"] == pending["purge_time"]
    token = again["tokens"]["access_token"]
    exported = (await call("GET", "/v1/users/me:export", token=token)).json
    assert exported["filename"].startswith(f"finity-{user_id}-")
    account, sessions = exported["data"]["account"], exported["data"]["sessions"]
    assert (account["email"], account["banned_at"]) == (email, None)
    ends = [session["end_reason"] for session in sessions]
    assert ends == [None, "account_deleted"]
    kept = (await call("POST", "/v1/users/me:cancelDeletion", {}, token)).json["user"]
    assert kept.get("purge_time") is None
    nobody = await call("POST", "/v1/users/me:delete", {})
    assert nobody.status == 401
