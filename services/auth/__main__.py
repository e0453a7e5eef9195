"""Runs the auth service: settings → database, redis, peers → service → servicer → serve."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from chassis import logs, migrate, server
from chassis.callers import Authenticator
from chassis.channels import open_channel
from chassis.clock import Clock, SystemClock
from chassis.limits import Limits
from chassis.outbox import Relay
from chassis.postgres import open_database
from chassis.revocations import Revocations
from chassis.roles import role_of
from chassis.settings import load
from chassis.tokens import TokenVerifier
from chassis.wakeups import announce
from services.auth.config import Settings
from services.auth.passwords import Passwords
from services.auth.peers import Usage
from services.auth.rpc import CONTRACTS, add_servicers
from services.auth.service.accounts import USAGE
from services.auth.service.authority import Authority, open_signer
from services.auth.service.room import ROOM, Room
from services.auth.worker import sweep_forever

MIGRATIONS = migrate.Room(ROOM, Path(__file__).parent / "migrations")


async def main() -> None:
    settings = load(Settings)
    logs.configure(settings, ROOM)
    async with composed(settings, SystemClock()) as grpc:
        await grpc.serve()


@contextlib.asynccontextmanager
async def composed(settings: Settings, clock: Clock) -> AsyncIterator[server.Server]:
    """Puts the service together; the server it yields has yet to be started."""
    policy = settings.session_policy()
    async with contextlib.AsyncExitStack() as stack:
        url = settings.database_url.get_secret_value()
        database = await stack.enter_async_context(
            open_database(url, role=role_of(ROOM), application="finity auth")
        )
        async with database.connection() as conn:
            await migrate.require_current(conn, MIGRATIONS)
        signer = await open_signer(
            database, settings.derive("signing-keys"), settings.issuer, clock
        )
        redis = Redis.from_url(settings.redis_url.get_secret_value(), socket_connect_timeout=1)
        stack.push_async_callback(redis.aclose)
        key, deadline = settings.service_key.get_secret_value(), settings.default_deadline
        channel = open_channel(settings.usage_address, key, deadline)
        stack.push_async_callback(channel.close)
        authority = Authority(database, clock, policy.access_token)
        verifier = TokenVerifier(authority, settings.issuer, clock)
        relay = Relay(ROOM, database, {USAGE: Usage(channel).user_registered}, clock)
        passwords = Passwords(
            memory_kib=settings.argon2_memory_kib,
            time_cost=settings.argon2_time_cost,
            queue=settings.argon2_queue,
        )
        stack.callback(passwords.close)

        async def announce_revoked(revoked: Revocations) -> None:
            verifier.revoke(revoked)
            await announce(redis)

        room = Room(
            database=database,
            clock=clock,
            passwords=passwords,
            signer=signer,
            policy=policy,
            limits=Limits(),
            guesses=settings.guesses(),
            derive=settings.derive,
            announce=announce_revoked,
            wake_relay=relay.wake,
            relying_party=settings.relying_party(),
        )
        authenticator = Authenticator(settings.service_keys, verifier)
        grpc = server.Server(settings, ROOM, authenticator, CONTRACTS)
        add_servicers(grpc.grpc, room, verifier, authority)
        await stack.enter_async_context(
            server.background(
                partial(verifier.run, redis), relay.run, partial(sweep_forever, database, clock)
            )
        )
        yield grpc


if __name__ == "__main__":
    server.run(main)
