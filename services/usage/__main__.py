"""Runs the usage service: settings → database, redis, peers → service → servicer → serve."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from chassis import logs, migrate, server, siblings
from chassis.background import background
from chassis.callers import Authenticator
from chassis.channels import open_channel
from chassis.clock import Clock, SystemClock
from chassis.outbox import Relay
from chassis.pages import PageTokens
from chassis.postgres import open_database
from chassis.roles import role_of
from chassis.settings import load
from chassis.tokens import TokenVerifier
from services.usage.config import Settings
from services.usage.peers import Auth
from services.usage.rpc import CONTRACTS, add_servicers
from services.usage.service.room import ROOM, Room
from services.usage.service.thresholds import AUTH
from services.usage.service.use_cases import UseCases
from services.usage.service.watching import BalanceHub
from services.usage.store import PLANNER
from services.usage.worker import jobs

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
        auth = Auth(channel)
        verifier = TokenVerifier(auth, settings.issuer, clock)
        hub = BalanceHub(database, clock, redis)
        room = Room(
            database=database,
            clock=clock,
            signup_credits=settings.signup_credits,
            flush_events=settings.flush_events,
            queue_events=settings.queue_events,
            announce=hub.announce,
            thresholds=settings.usage_thresholds,
        )
        cases = UseCases(room)
        await cases.standings.set_allowances(settings.allowances())
        authenticator = Authenticator(settings.service_keys, verifier)
        grpc = server.Server(settings, ROOM, authenticator, CONTRACTS)
        grpc.on_drain.append(hub.close)
        pages, secret = PageTokens(settings.derive("pages")), settings.derive("idempotency")
        add_servicers(grpc.grpc, cases, hub, pages, secret)
        await stack.enter_async_context(
            background(
                partial(verifier.run, redis),
                *hub.jobs(),
                Relay(ROOM, database, {AUTH: auth.deliver}, clock).run,
                cases.metering.meter.run,
                cases.reservations.desk.run,
                *jobs(cases, settings.sweep_seconds, settings.retention_months),
            )
        )
        yield grpc


if __name__ == "__main__":
    siblings.run(main, ROOM, partial(load, Settings), lambda settings: settings.processes)
