"""Runs the usage service: settings → database, redis, peers → service → servicer → serve."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from chassis import logs, migrate, server, siblings
from chassis.callers import Authenticator
from chassis.channels import open_channel
from chassis.clock import Clock, SystemClock
from chassis.pages import PageTokens
from chassis.postgres import open_database
from chassis.roles import role_of
from chassis.settings import load
from chassis.tokens import TokenVerifier
from services.usage.config import Settings
from services.usage.peers import Auth
from services.usage.rpc import CONTRACTS, add_servicers
from services.usage.service.metering import MeteringService
from services.usage.service.room import ROOM, Room
from services.usage.worker import look_ahead_forever

# Statements of this room find every row by an index, and are planned once: at the sizes of a test
# or a young house the planner would rather read the table, and go on doing so when it has grown.
PLANNER = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
MIGRATIONS = migrate.Room(ROOM, Path(__file__).parent / "migrations")


async def main() -> None:
    settings = load(Settings)
    logs.configure(settings, ROOM)
    async with composed(settings, SystemClock()) as grpc:
        await grpc.serve()


@contextlib.asynccontextmanager
async def composed(settings: Settings, clock: Clock) -> AsyncIterator[server.Server]:
    """Puts the service together; the server it yields has yet to be started."""
    async with contextlib.AsyncExitStack() as stack:
        url = settings.database_url.get_secret_value()
        database = await stack.enter_async_context(
            open_database(url, role=role_of(ROOM), application="finity usage", settings=PLANNER)
        )
        async with database.connection() as conn:
            await migrate.require_current(conn, MIGRATIONS)
        redis = Redis.from_url(settings.redis_url.get_secret_value(), socket_connect_timeout=1)
        stack.push_async_callback(redis.aclose)
        channel = open_channel(
            settings.auth_address,
            settings.service_key.get_secret_value(),
            settings.default_deadline,
        )
        stack.push_async_callback(channel.close)
        verifier = TokenVerifier(Auth(channel), settings.issuer, clock)
        room = Room(
            database=database,
            clock=clock,
            signup_credits=settings.signup_credits,
            flush_events=settings.flush_events,
            queue_events=settings.queue_events,
        )
        metering = MeteringService(room)
        authenticator = Authenticator(settings.service_keys, verifier)
        grpc = server.Server(settings, ROOM, authenticator, CONTRACTS)
        add_servicers(grpc.grpc, room, metering, PageTokens(settings.derive("pages")))
        await stack.enter_async_context(
            server.background(
                partial(verifier.run, redis),
                metering.meter.run,
                partial(look_ahead_forever, metering),
            )
        )
        yield grpc


if __name__ == "__main__":
    siblings.run(main, ROOM, partial(load, Settings), lambda settings: settings.processes)
