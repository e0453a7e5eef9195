"""Runs the auth service: settings → database, redis, peers → service → servicer → serve."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from chassis import logs, migrate, server
from chassis.background import background
from chassis.callers import Authenticator
from chassis.channels import open_channel
from chassis.clock import Clock, SystemClock
from chassis.limits import Limits
from chassis.outbox import Relay
from chassis.postgres import open_database
from chassis.roles import role_of
from chassis.settings import load
from chassis.tokens import TokenVerifier
from services.auth.config import Settings
from services.auth.peers import Usage
from services.auth.providers import open_providers
from services.auth.rpc import CONTRACTS, add_servicers
from services.auth.service.accounts import USAGE
from services.auth.service.authority import Authority
from services.auth.service.mail import SMTP
from services.auth.service.room import ROOM, Room
from services.auth.service.signing_keys import SigningKeys
from services.auth.strength import Strength
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
        signer = SigningKeys(database, settings.derive("signing-keys"), settings.issuer, clock)
        await signer.load()
        redis = Redis.from_url(settings.redis_url.get_secret_value(), socket_connect_timeout=1)
        stack.push_async_callback(redis.aclose)
        key, deadline = settings.service_key.get_secret_value(), settings.default_deadline
        channel = open_channel(settings.usage_address, key, deadline)
        stack.push_async_callback(channel.close)
        authority = Authority(database, clock, policy.access_token, signer)
        verifier = TokenVerifier(authority, settings.issuer, clock)
        consumers = {USAGE: Usage(channel).deliver, SMTP: settings.mailer().deliver}
        relay = Relay(ROOM, database, consumers, clock)
        passwords = stack.enter_context(contextlib.closing(settings.passwords()))
        await passwords.ready()
        providers = await stack.enter_async_context(open_providers(settings.providers(), clock))
        room = Room(
            database=database,
            clock=clock,
            passwords=passwords,
            strength=stack.enter_context(contextlib.closing(Strength())),
            signer=signer,
            policy=policy,
            limits=Limits(redis),
            guesses=settings.guesses(),
            registrations=settings.registrations(),
            deletion_grace=settings.deletion_grace(),
            derive=settings.derive,
            announce=partial(authority.announce, redis, verifier),
            wake_relay=relay.wake,
            devices=settings.device_policy(),
            relying_party=settings.relying_party(),
        )
        authenticator = Authenticator(settings.service_keys, verifier)
        # With one, calls in a storm of logins wait behind the hashes, which fill every core.
        grpc = server.Server(settings, ROOM, authenticator, CONTRACTS, io_threads=2)
        grpc.on_drain.append(authority.feed.close)
        add_servicers(grpc.grpc, room, verifier, authority, providers)
        sweeping = partial(sweep_forever, room)
        await stack.enter_async_context(
            background(*authority.jobs(redis), partial(verifier.run, None), relay.run, sweeping)
        )
        yield grpc


if __name__ == "__main__":
    server.run(main)
