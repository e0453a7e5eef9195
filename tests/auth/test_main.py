"""The auth service as a whole process: start-up sentences, replicas, secrets."""

import asyncio
import contextlib
import re
import secrets
import socket
from collections.abc import Awaitable
from typing import Any

import pytest
from finity.auth.v1 import auth_pb2, auth_pb2_grpc
from grpc import aio

from chassis.postgres import Connection
from chassis.server import StartupError
from chassis.settings import load
from services.auth.__main__ import composed
from services.auth.config import Settings
from services.auth.keys import open_key
from suite.ports import free_port
from tests.factories import an_address, start_process
from tests.fakes import FakeClock
from tests.running import SERVICE_KEY, bearer

# The transport itself may report a failed bind before it raises.
LOGGED = re.compile(r"[EWI]\d{4} |\d{4}-\d\d-\d\dT")
SECRET = "a secret of forty characters, more or less"


async def sentence(database_url: str, redis_url: str, **variables: str) -> str:
    """Starts the service, which must not start; returns the one line it wrote."""
    process = await start_process("auth", database_url, redis_url, variables)
    code, stderr = await process.finish()
    lines = [line for line in stderr.splitlines() if not LOGGED.match(line)]
    assert (code, len(lines)) == (1, 1), stderr
    return lines[0]


async def test_an_unreachable_database_is_a_sentence(redis_url: str) -> None:
    """The sentence names DATABASE_URL and the place, and not the password."""
    url = f"postgresql://finity:hushhush@127.0.0.1:{free_port()}/finity_db"
    line = await sentence(url, redis_url)
    assert "DATABASE_URL" in line
    assert "hushhush" not in line


async def test_a_database_that_was_never_migrated_is_a_sentence(
    empty_database_url: str, redis_url: str
) -> None:
    """A database behind its migrations is refused with what to run."""
    assert "finity migrate" in await sentence(empty_database_url, redis_url)


async def test_another_secret_is_a_sentence(
    database_url: str, redis_url: str, clock: FakeClock
) -> None:
    """With another FINITY_SECRET the service does not start, and says why."""
    shared: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url}
    async with composed(load(Settings, secret=SECRET, **shared), clock):
        pass
    with pytest.raises(StartupError, match="FINITY_SECRET"):
        async with composed(load(Settings, secret=SECRET[::-1], **shared), clock):
            pass
    line = await sentence(database_url, redis_url, FINITY_SECRET=SECRET[::-1])
    assert line.startswith("FINITY_SECRET is not the one")


@pytest.mark.parametrize("transport", ["native", "grpcio"])
async def test_a_taken_port_is_a_sentence(
    database_url: str, redis_url: str, transport: str
) -> None:
    """A port somebody listens on is named together with the variable to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = await sentence(
            database_url, redis_url, FINITY_AUTH_PORT=str(port), FINITY_TRANSPORT=transport
        )
    assert f":{port} " in line
    assert "FINITY_AUTH_PORT" in line


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"DATABASE_URL": "mysql://finity@localhost/finity_db"}, "DATABASE_URL"),
        ({"FINITY_SERVICE_KEYS": "{"}, "FINITY_SERVICE_KEYS"),
        ({"FINITY_ENV": "production"}, "FINITY_SECRET"),
    ],
)
async def test_a_wrong_setting_is_a_sentence(
    database_url: str, redis_url: str, variables: dict[str, str], named: str
) -> None:
    """A setting that makes no sense is one line that names it."""
    assert named in await sentence(database_url, redis_url, **variables)


async def test_ten_replicas_make_one_key(
    database_url: str, redis_url: str, owner: Connection, clock: FakeClock
) -> None:
    """Replicas that start at once on an empty database sign with one and the same key."""
    settings = load(Settings, database_url=database_url, redis_url=redis_url)
    started, all_started = [], asyncio.Barrier(10)

    async def start() -> None:
        async with composed(settings, clock) as replica:
            started.append(replica)
            await all_started.wait()

    await asyncio.gather(*(start() for _ in range(10)))
    assert len(started) == 10
    assert await owner.fetchval("SELECT count(*) FROM signing_keys") == 1


async def test_no_secret_is_kept_or_logged(
    database_url: str, redis_url: str, owner: Connection
) -> None:
    """After a whole story no password, token or key is in any row or any line of the log."""
    password, newcomer = f"pass-{secrets.token_hex(8)}", an_address()
    port = free_port()
    process = await start_process(
        "auth",
        database_url,
        redis_url,
        {
            "FINITY_SECRET": SECRET,
            "FINITY_LOG_LEVEL": "debug",
            "FINITY_USAGE_ADDRESS": f"127.0.0.1:{free_port()}",
        },
        port=port,
    )
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            hidden = await tell_story(channel, newcomer, password)
    finally:
        process.child.terminate()
        code, log = await process.finish()
    assert code == 0
    assert "refused" in log
    key = await owner.fetchrow("SELECT kid, sealed_private_key FROM signing_keys")
    sealing = load(Settings, secret=SECRET).derive("signing-keys")
    signer = open_key(sealing, key["kid"], key["sealed_private_key"], "")
    hidden |= {SECRET, SERVICE_KEY, password, signer.key.private_bytes_raw().hex()}
    rows = await every_row(owner)
    assert newcomer in rows
    assert not {secret for secret in hidden if secret in rows}
    assert not {secret for secret in hidden if secret in log}


async def tell_story(channel: aio.Channel, email: str, password: str) -> set[str]:
    """Uses every method that takes or gives a secret; returns the secrets seen."""
    auth, service = auth_pb2_grpc.AuthServiceStub(channel), bearer(SERVICE_KEY)
    hidden = set()
    register = auth_pb2.RegisterRequest(email=email, password=password, idempotency_key="r")
    user = (await auth.Register(register, wait_for_ready=True, timeout=20)).user
    login = auth_pb2.LoginRequest(email=email, password=password, idempotency_key="l")
    tokens = (await auth.Login(login)).tokens
    for _ in range(3):
        hidden |= {tokens.access_token, tokens.refresh_token}
        request = auth_pb2.RefreshSessionRequest(refresh_token=tokens.refresh_token)
        tokens = (await auth.RefreshSession(request)).tokens
    await auth.ValidateToken(
        auth_pb2.ValidateTokenRequest(token=tokens.access_token), metadata=service
    )
    await auth.SetRole(
        auth_pb2.SetRoleRequest(user_id=user.user_id, role=auth_pb2.ROLE_PRO, reason="paid"),
        metadata=service,
    )
    refused: list[Awaitable[Any]] = [
        auth.Login(auth_pb2.LoginRequest(email=email, password=f"{password}x")),
        auth.Register(auth_pb2.RegisterRequest(email="ada", password=password)),
        auth.RefreshSession(auth_pb2.RefreshSessionRequest(refresh_token=password)),
        auth.GetUser(auth_pb2.GetUserRequest(), metadata=bearer(tokens.access_token)),
        auth.GetUser(auth_pb2.GetUserRequest(), metadata=bearer(tokens.refresh_token)),
    ]
    for call in refused:
        with contextlib.suppress(aio.AioRpcError):
            await call
    await auth.Logout(auth_pb2.LogoutRequest(), metadata=bearer(await fresh(auth, tokens)))
    return hidden | {tokens.access_token, tokens.refresh_token, f"{password}x"}


async def fresh(auth: auth_pb2_grpc.AuthServiceStub, tokens: auth_pb2.SessionTokens) -> str:
    request = auth_pb2.RefreshSessionRequest(refresh_token=tokens.refresh_token)
    return (await auth.RefreshSession(request)).tokens.access_token


async def every_row(owner: Connection) -> str:
    """Returns every row of every table, as text."""
    tables = await owner.fetch(
        "SELECT oid::regclass::text AS name FROM pg_class"
        " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    rows = []
    for table in tables:
        rows += await owner.fetch(f"SELECT r::text AS text FROM {table['name']} AS r")  # noqa: S608
    return "\n".join(row["text"] for row in rows)
