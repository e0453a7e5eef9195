"""Runs the usage service: settings → database, redis, peers → service → servicer → serve."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from redis.asyncio import Redis

from chassis import logs, migrate, server
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
from services.usage.rpc import UsageServicer
from services.usage.service import ROOM, UsageService
from services.usage.worker import look_ahead_forever

CONTRACT = usage_pb2.DESCRIPTOR.services_by_name["UsageService"]
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
            open_database(url, role=role_of(ROOM), application="finity usage")
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
        service = UsageService(
            database=database,
            clock=clock,
            signup_credits=settings.signup_credits,
            flush_events=settings.flush_events,
            queue_events=settings.queue_events,
        )
        servicer = UsageServicer(service, PageTokens(settings.derive("pages")), clock)
        authenticator = Authenticator(settings.service_keys, verifier)
        grpc = server.Server(settings, ROOM, authenticator, [CONTRACT])
        usage_pb2_grpc.add_UsageServiceServicer_to_server(servicer, grpc.grpc)
        await stack.enter_async_context(
            server.background(
                partial(verifier.run, redis),
                service.meter.run,
                partial(look_ahead_forever, service),
            )
        )
        yield grpc


if __name__ == "__main__":
    server.run(main)
