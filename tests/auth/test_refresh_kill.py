"""The auth process, killed while clients refresh: nobody is logged out, no thief gets in."""

import asyncio
import random
from dataclasses import dataclass, field
from uuid import UUID

from finity.auth.v1 import auth_pb2, auth_pb2_grpc
from grpc import StatusCode, aio

from chassis.postgres import Connection
from services.auth.domain.sessions import digest
from suite.ports import free_port
from tests.factories import Process, an_address, start_process
from tests.running import PASSWORD, refusal_of

ROUNDS = 10
CLIENTS = 16
LONGEST_SECONDS = 0.4
GRACE_SECONDS = 1
SETTINGS = {
    "FINITY_LOG_LEVEL": "error",
    "FINITY_SMTP_PORT": "9",
    "FINITY_REFRESH_GRACE_SECONDS": str(GRACE_SECONDS),
    "FINITY_REFRESH_REUSE_SECONDS": "3600",
}


@dataclass(slots=True)
class Client:
    """Somebody who keeps the last refresh token that reached them, and repeats it."""

    session_id: UUID
    first: str
    held: str
    refreshes: int = 0
    fresh: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first answer of a round."""

    async def refresh(self, auth: auth_pb2_grpc.AuthServiceStub) -> None:
        request = auth_pb2.RefreshSessionRequest(refresh_token=self.held)
        answer = await auth.RefreshSession(request, timeout=20)
        assert answer.tokens.refresh_token != self.held
        self.held = answer.tokens.refresh_token
        self.refreshes += 1
        self.fresh.set()

    async def work(self, auth: auth_pb2_grpc.AuthServiceStub) -> None:
        """Refreshes until the process is gone; any refusal is a false logout."""
        while True:
            try:
                await self.refresh(auth)
            except aio.AioRpcError as error:
                if error.code() is StatusCode.UNAVAILABLE:
                    return
                raise


async def log_in(auth: auth_pb2_grpc.AuthServiceStub) -> Client:
    email = an_address()
    await auth.Register(auth_pb2.RegisterRequest(email=email, password=PASSWORD))
    tokens = (await auth.Login(auth_pb2.LoginRequest(email=email, password=PASSWORD))).tokens
    return Client(UUID(tokens.session_id), tokens.refresh_token, tokens.refresh_token)


async def refusal(auth: auth_pb2_grpc.AuthServiceStub, token: str) -> str:
    """Returns the reason a refresh token is refused for, "" if it is not."""
    try:
        await auth.RefreshSession(auth_pb2.RefreshSessionRequest(refresh_token=token), timeout=20)
    except aio.AioRpcError as error:
        return refusal_of(error)[1]
    return ""


async def lost(owner: Connection, clients: list[Client]) -> dict[UUID, str]:
    """Returns the sessions that were rotated without their client's knowledge: their token."""
    rows = await owner.fetch(
        "SELECT id, refresh_token FROM sessions WHERE id = ANY($1)",
        [client.session_id for client in clients],
    )
    stored = {row["id"]: str(row["refresh_token"]) for row in rows}
    return {
        client.session_id: stored[client.session_id]
        for client in clients
        if stored[client.session_id] != digest(client.held)
    }


async def test_kill_9_logs_nobody_out_and_lets_no_thief_in(
    database_url: str, redis_url: str, owner: Connection
) -> None:
    """10 times killed at random moments: a repeated token gets its successor, an old one ends."""
    dice = random.Random(10)  # noqa: S311

    async def start() -> Process:
        return await start_process("auth", database_url, redis_url, SETTINGS, port=free_port())

    clients: list[Client] = []
    answers_lost = 0
    upcoming = await start()
    try:
        for _ in range(ROUNDS):
            process = upcoming
            async with aio.insecure_channel(f"127.0.0.1:{process.port}") as channel:
                auth = auth_pb2_grpc.AuthServiceStub(channel)
                await asyncio.wait_for(channel.channel_ready(), 30)
                if not clients:
                    clients = [await log_in(auth) for _ in range(CLIENTS)]
                unknown = await lost(owner, clients)
                answers_lost += len(unknown)
                for client in clients:
                    await client.refresh(auth)
                    # The successor is the one that was committed, not another beside it.
                    assert unknown.get(client.session_id, digest(client.held)) == digest(
                        client.held
                    )
                    client.fresh.clear()
                workers = [asyncio.create_task(client.work(auth)) for client in clients]
                # The next one gets ready while this one works.
                upcoming = await start()
                for client in clients:
                    await asyncio.wait_for(client.fresh.wait(), 30)
                await asyncio.sleep(dice.uniform(0, LONGEST_SECONDS))
                await process.kill()
                await asyncio.gather(*workers)
        # Without a single lost answer nothing was shown.
        assert answers_lost

        async with aio.insecure_channel(f"127.0.0.1:{upcoming.port}") as channel:
            auth = auth_pb2_grpc.AuthServiceStub(channel)
            await asyncio.wait_for(channel.channel_ready(), 30)
            for client in clients:
                await client.refresh(auth)
            await asyncio.sleep(GRACE_SECONDS + 0.1)
            thieves = [await refusal(auth, client.first) for client in clients]
            assert thieves == ["REFRESH_TOKEN_REPLAYED"] * CLIENTS
            upcoming, process = await start(), upcoming
            await process.kill()
        async with aio.insecure_channel(f"127.0.0.1:{upcoming.port}") as channel:
            auth = auth_pb2_grpc.AuthServiceStub(channel)
            await asyncio.wait_for(channel.channel_ready(), 30)
            ends = [await refusal(auth, client.held) for client in clients]
            assert ends == ["SESSION_ENDED"] * CLIENTS
    finally:
        await upcoming.kill()
