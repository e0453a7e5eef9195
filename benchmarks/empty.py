"""
A service whose one method does nothing: what a call costs before anybody does anything.

    python -m benchmarks.empty native bare 127.0.0.1:50100 9100

`bare` is a handler on the transport and nothing else; `gated` is the chassis'
server around it. The method is AuthService.GetSigningKeys, for its contract has
just what is needed: anybody may call it and its request is empty.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import pygrpc_native.aio
import uvloop
from finity.auth.v1 import auth_pb2
from grpc import aio
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from chassis import server
from chassis.callers import Authenticator, Caller
from chassis.refusals import CredentialsInvalid
from chassis.settings import ServiceSettings

SERVICE, METHOD = "finity.auth.v1.AuthService", "GetSigningKeys"
Behavior = Callable[[Any, Any], Awaitable[auth_pb2.GetSigningKeysResponse]]
_ANSWER = auth_pb2.GetSigningKeysResponse()


class Count(Collector):
    """Counts calls as the chassis does, for a server that has none."""

    def __init__(self) -> None:
        self.calls = 0

    def collect(self) -> Iterator[Metric]:
        labels = ["grpc_service", "grpc_method", "grpc_code"]
        family = CounterMetricFamily("grpc_server_handled", "Calls answered.", labels=labels)
        family.add_metric([SERVICE, METHOD, "OK"], self.calls)
        yield family


class NoTokens:
    """Nobody shows a token to a public method."""

    async def verify(self, token: str) -> Caller:
        raise CredentialsInvalid


def register(grpc_server: Any, behavior: Behavior) -> None:
    """Does for one method what generated code does for all of a service."""
    handlers = {
        METHOD: grpc.unary_unary_rpc_method_handler(
            behavior,
            request_deserializer=auth_pb2.GetSigningKeysRequest.FromString,
            response_serializer=auth_pb2.GetSigningKeysResponse.SerializeToString,
        )
    }
    grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    grpc_server.add_registered_method_handlers(SERVICE, handlers)


async def answer(_: Any, __: Any) -> auth_pb2.GetSigningKeysResponse:
    """The method that does nothing."""
    return _ANSWER


async def serve_bare(transport: str, address: str, metrics_port: int) -> None:
    count = Count()
    # The default registry has the chassis' counter of this name.
    registry = CollectorRegistry()
    registry.register(count)
    start_http_server(metrics_port, addr="127.0.0.1", registry=registry)

    async def counted(request: Any, context: Any) -> auth_pb2.GetSigningKeysResponse:
        count.calls += 1
        return _ANSWER

    native = transport == "native"
    grpc_server: aio.Server = pygrpc_native.aio.Server(io_threads=1) if native else aio.server()
    register(grpc_server, counted)
    grpc_server.add_insecure_port(address)
    await grpc_server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await grpc_server.stop(None)


async def serve_gated(transport: str, address: str, metrics_port: int) -> None:
    host, _, port = address.rpartition(":")
    settings = ServiceSettings.model_validate(
        {
            "transport": transport,
            "host": host,
            "port": int(port),
            "metrics_port": metrics_port,
            "log_level": "warning",
        }
    )
    descriptor = auth_pb2.DESCRIPTOR.services_by_name["AuthService"]
    authenticator = Authenticator({}, NoTokens())
    async with server.Server(settings, "bench", authenticator, [descriptor]) as gated:
        register(gated.grpc, answer)
        await gated.serve()


def main() -> None:
    transport, kind, address, metrics_port = sys.argv[1:]
    serve = serve_bare if kind == "bare" else serve_gated
    uvloop.run(serve(transport, address, int(metrics_port)))


if __name__ == "__main__":
    main()
