"""The people of the measurements: users with a password and credits, here and at the peer."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
from argon2 import PasswordHasher
from finity.auth.v1 import auth_pb2, auth_pb2_grpc
from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from grpc import aio

from benchmarks import copying
from benchmarks.bed import Bed
from benchmarks.peer import SCHEMA
from chassis.dsn import parse_dsn
from chassis.ids import uuid7
from services.auth.config import Settings

USERS = 1000
# More than any run can spend.
CREDITS = 1_000_000_000
PASSWORD = "correct horse battery staple"  # noqa: S105 - nobody's
_AT_ONCE = 32
_CHANNEL = [("grpc.enable_http_proxy", 0)]


@dataclass(frozen=True, slots=True)
class People:
    """The users, and what one of them shows."""

    ids: tuple[str, ...]
    emails: tuple[str, ...]
    password_hash: str
    access_token: str


def hasher() -> PasswordHasher:
    """Returns argon2id as the auth service is set up by default."""
    fields = Settings.model_fields
    return PasswordHasher(
        time_cost=fields["argon2_time_cost"].default,
        memory_cost=fields["argon2_memory_kib"].default,
        parallelism=1,
    )


async def sow(bed: Bed, conn: "asyncpg.Connection[Any]") -> People:
    """Makes the users: their rows in SQL, for 1,000 passwords take long; the rest by RPC."""
    hashed = hasher().hash(PASSWORD)
    now = datetime.now(UTC)
    people = [(uuid7(now), f"user{number}@example.com") for number in range(USERS)]
    await conn.executemany(
        "INSERT INTO users (id, email, password_hash, created_at) VALUES ($1, $2, $3, $4)",
        [(user_id, email, hashed, now) for user_id, email in people],
    )
    ids = tuple(str(user_id) for user_id, _ in people)
    await _open_accounts(bed, ids)
    await _sow_peer(conn, now)
    await conn.execute("VACUUM ANALYZE")
    await _wear_in(conn)
    emails = tuple(email for _, email in people)
    return People(ids, emails, hashed, await _log_in(bed, emails[0]))


async def _wear_in(conn: "asyncpg.Connection[Any]") -> None:
    """Writes the log once as far as it is used again: a server that has run for a day did."""
    files = await conn.fetchval(
        "SELECT pg_size_bytes(current_setting('min_wal_size'))"
        " / pg_size_bytes(current_setting('wal_segment_size'))"
    )
    for _ in range(files):
        # Without a record there is nothing to end a file after.
        await conn.execute("SELECT pg_logical_emit_message(false, 'benchmarks', '')")
        await conn.execute("SELECT pg_switch_wal()")
    await conn.execute("CHECKPOINT")


async def connect(bed: Bed) -> "asyncpg.Connection[Any]":
    """Connects to the database as its owner."""
    return await asyncpg.connect(parse_dsn(bed.database_url).url)


async def _open_accounts(bed: Bed, ids: tuple[str, ...]) -> None:
    metadata = (("authorization", f"Bearer {bed.service_key}"),)
    async with aio.insecure_channel(bed.usage["native"].address, options=_CHANNEL) as channel:
        usage = usage_pb2_grpc.UsageServiceStub(channel)

        async def open_one(user_id: str) -> None:
            request = usage_pb2.GrantCreditsRequest(
                user_id=user_id, amount=CREDITS, source="bench", source_ref="start"
            )
            await usage.GrantCredits(request, metadata=metadata)

        await _each(open_one, ids)


async def _each(act: Callable[[str], Awaitable[None]], names: tuple[str, ...]) -> None:
    for start in range(0, len(names), _AT_ONCE):
        await asyncio.gather(*map(act, names[start : start + _AT_ONCE]))


async def _sow_peer(conn: "asyncpg.Connection[Any]", now: datetime) -> None:
    await conn.execute(SCHEMA)
    await conn.execute(copying.SCHEMA)
    await conn.execute(
        "INSERT INTO peer_accounts (user_id, granted, created_at, updated_at)"
        " SELECT user_id, granted, $1, $1 FROM credit_accounts",
        now,
    )


async def _log_in(bed: Bed, email: str) -> str:
    async with aio.insecure_channel(bed.auth.address, options=_CHANNEL) as channel:
        auth = auth_pb2_grpc.AuthServiceStub(channel)
        answer = await auth.Login(auth_pb2.LoginRequest(email=email, password=PASSWORD))
    return answer.tokens.access_token
