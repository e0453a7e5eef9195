"""
A service's process: the gRPC server on either transport, health, reflection, drain.

    server = Server(settings, "auth", authenticator, [descriptor])
    await server.serve()
"""

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, cast

import structlog
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from prometheus_client import start_http_server

from chassis import logs, native
from chassis.callers import Authenticator
from chassis.contract import ContractError, methods_of, sensitive_names
from chassis.dsn import DatabaseError
from chassis.gate import Gate, Guarded
from chassis.settings import ServiceSettings, SettingsError

MAX_MESSAGE_BYTES = 1024 * 1024
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 1024),
    # Clients may ping every 10 s; the default answers pings under 300 s with GOAWAY.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
# Hundredths are enough on a busy machine; a caller that reads slowly may need longer than any.
_WRITTEN_SECONDS = 0.1
_log = structlog.get_logger()


class StartupError(Exception):
    """The service cannot start; the message says what to change."""


class Server:
    """One room's gRPC server."""

    def __init__(
        self,
        settings: ServiceSettings,
        room: str,
        authenticator: Authenticator,
        services: Sequence[ServiceDescriptor],
        *,
        io_threads: int = 1,
    ) -> None:
        """
        ContractError if a method of `services` has no access rule or a rule does not compile.

        `io_threads` of the native transport read and write all connections. Handlers run on one
        thread: a second one for their messages wakes and sleeps for nearly every one of them, and
        is worth that where the cores are kept busy by others.
        """
        self._settings = settings
        self._room = room
        self._names = [service.full_name for service in services]
        logs.conceal(sensitive_names(services))
        self._gate = Gate(
            room,
            methods_of(services),
            authenticator,
            default_deadline=settings.default_deadline,
            max_concurrent_calls=settings.max_concurrent_calls,
        )
        # A port that is taken is an error, unless these are several processes that share it.
        shared = ("grpc.so_reuseport", int(settings.process > 0))
        options = [*_OPTIONS, shared]
        self._grpc: aio.Server = (
            native.Server(options=options, io_threads=io_threads)
            if settings.transport == "native"
            else aio.server(options=options)
        )
        self.grpc = cast("aio.Server", Guarded(self._grpc, self._gate))
        """What servicers are added to."""
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        if settings.reflection and settings.env == "development":
            # By name: what chooses a servicer by the kind of server takes ours for a blocking one.
            names = [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
                reflection.aio.ReflectionServicer(names), self.grpc
            )
        self.port = 0
        self.on_drain: list[Callable[[], None]] = []
        """Ends streams that would otherwise be open until the drain is over."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop(None)

    async def start(self) -> None:
        """Listens and reports SERVING; StartupError if the port is taken."""
        address = f"{self._settings.host}:{self._settings.port}"
        try:
            self.port = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise StartupError(
                f"{address} is taken; set FINITY_{self._room.upper()}_PORT to a free port."
            ) from error
        self._grpc.add_generic_rpc_handlers((self._gate,))
        await self._grpc.start()
        await self._report(health_pb2.HealthCheckResponse.SERVING)
        _log.info(
            "serving",
            address=f"{self._settings.host}:{self.port}",
            transport=self._settings.transport,
        )

    async def serve(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains: no new calls, running ones get to finish."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        with self._serving_metrics():
            await self.start()
            await stop.wait()
            _log.info("draining", seconds=self._settings.drain_seconds)
            await self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
            for end in self.on_drain:
                end()
            await self.stop(self._settings.drain_seconds)
        _log.info("stopped")

    async def stop(self, grace: float | None) -> None:
        """Ends the server; calls under way get `grace` seconds, new ones are refused."""
        self._gate.drain()
        if grace and self._settings.transport == "native":
            # It closes its connections with answers in them that it has not written yet.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._gate.finished()
                await asyncio.sleep(_WRITTEN_SECONDS)
            grace = None
        await self._grpc.stop(grace)

    async def _report(self, state: Any) -> None:
        for name in ("", *self._names):
            await self._health.set(name, state)

    @contextlib.contextmanager
    def _serving_metrics(self) -> Iterator[None]:
        port = self._settings.own_metrics_port
        if not port:
            yield
            return
        try:
            http, _ = start_http_server(port, addr=self._settings.host)
        except OSError as error:
            raise StartupError(
                f"{self._settings.host}:{port} is taken; set"
                f" FINITY_{self._room.upper()}_METRICS_PORT to a free port, or 0 for none."
            ) from error
        try:
            yield
        finally:
            http.shutdown()
            http.server_close()


def run(service: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a composition root; a reason not to start is one sentence on stderr and exit code 1."""
    gc.freeze()  # What is imported stays: to look through it again and again took a tenth.
    gc.set_threshold(50_000, 20, 20)
    try:
        uvloop.run(service())
    except (SettingsError, StartupError, ContractError, DatabaseError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
