"""A served room of the tests' own: the chassis' real server and gate around any handler."""

import contextlib
import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from finity.options.v1 import options_pb2
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode, aio
from grpc_status import rpc_status

from chassis.callers import Authenticator
from chassis.server import Server
from chassis.settings import ServiceSettings
from chassis.tokens import TokenVerifier
from tests.chassis import contracts, issuer
from tests.chassis.contracts import Rpc, Text
from tests.fakes import FakeClock
from tests.running import Metadata, bearer, refusal_of

CONTRACT = contracts.build(
    [Text("user_id", subject=True), Text("text", max_len=20), Text("idempotency_key")],
    [
        Rpc("Open", [options_pb2.PUBLIC]),
        Rpc("Own", [options_pb2.USER, options_pb2.ADMIN, options_pb2.SERVICE]),
        Rpc("Manage", [options_pb2.ADMIN]),
        Rpc("Serve", [options_pb2.SERVICE]),
        Rpc("Watch", [options_pb2.USER, options_pb2.SERVICE], stream=True),
        Rpc("Collect", [options_pb2.USER, options_pb2.SERVICE], takes_stream=True),
        Rpc("Exchange", [options_pb2.USER, options_pb2.SERVICE], stream=True, takes_stream=True),
    ],
)
Ask: Any = GetMessageClass(CONTRACT.methods_by_name["Open"].input_type)
Answer: Any = GetMessageClass(CONTRACT.methods_by_name["Open"].output_type)
SERVICE_KEY = f"fsk_probe_{secrets.token_urlsafe(32)}"
SERVICE = bearer(SERVICE_KEY)
ROOM = "probe"

Behaviour = Callable[[Any, Any], Awaitable[Any]]
Stream = Callable[[Any, Any], AsyncGenerator[Any, None]]


async def echo(request: Any, _: Any) -> Any:
    """Answers what was asked."""
    return Answer(text=request.text)


async def thrice(request: Any, _: Any) -> AsyncGenerator[Any, None]:
    """Answers what was asked three times."""
    for _ in range(3):
        yield Answer(text=request.text)


@dataclass(slots=True)
class Probe:
    """The running room; `behaviour` answers every method and is the test's to change."""

    server: Server
    channel: aio.Channel
    issuer: issuer.Issuer
    behaviour: Behaviour
    stream: Stream
    verifier: TokenVerifier

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def call(
        self,
        method: str,
        ask: Any = None,
        *,
        metadata: Metadata = (),
        timeout: float | None = None,
        channel: aio.Channel | None = None,
    ) -> Any:
        """Makes one call; the request is sent as it is, whatever it is."""
        call: Any = (channel or self.channel).unary_unary(
            path(method),
            request_serializer=_bytes_of,
            response_deserializer=Answer.FromString,
        )
        return call(Ask() if ask is None else ask, metadata=metadata, timeout=timeout)

    def watch(
        self, ask: Any = None, *, metadata: Metadata = (), timeout: float | None = None
    ) -> Any:
        """Opens the stream."""
        call: Any = self.channel.unary_stream(
            path("Watch"), request_serializer=_bytes_of, response_deserializer=Answer.FromString
        )
        return call(Ask() if ask is None else ask, metadata=metadata, timeout=timeout)

    def send(
        self,
        method: str,
        asks: AsyncIterator[Any] | None = None,
        *,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> Any:
        """Opens a stream of requests: Collect or Exchange."""
        kind: Any = self.channel.stream_unary if method == "Collect" else self.channel.stream_stream
        call = kind(
            path(method), request_serializer=_bytes_of, response_deserializer=Answer.FromString
        )
        return call(asks, metadata=metadata, timeout=timeout)


def passed(error: aio.AioRpcError) -> bool:
    """
    Tells whether the room refused a late call; False if its caller's own timer was first.

    That is first on a loop that both share and that lags, and it sends no details.
    """
    if error.code() is StatusCode.DEADLINE_EXCEEDED and rpc_status.from_call(error) is None:
        return False
    assert refusal_of(error) == (StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED")
    return True


def path(method: str) -> str:
    return f"/{CONTRACT.full_name}/{method}"


def settings_of(**overrides: Any) -> ServiceSettings:
    """Returns settings on a free port."""
    digest = hashlib.sha256(SERVICE_KEY.encode()).hexdigest()
    return ServiceSettings(**{"port": 0, "service_keys": {"test": (digest,)}, **overrides})


@contextlib.asynccontextmanager
async def serve(behaviour: Behaviour = echo, **overrides: Any) -> AsyncIterator[Probe]:
    """Serves the contract until the block ends; `overrides` are settings."""
    async with composed(behaviour, **overrides) as probe:
        await probe.server.start()
        async with aio.insecure_channel(probe.address) as channel:
            probe.channel = channel
            yield probe


@contextlib.asynccontextmanager
async def composed(behaviour: Behaviour = echo, **overrides: Any) -> AsyncIterator[Probe]:
    """Puts the room together; its server has yet to be started and its channel is of no use."""
    clock = FakeClock()
    authority = issuer.Issuer(clock)
    settings = settings_of(**overrides)
    verifier = TokenVerifier(authority, issuer.NAME, clock)
    authenticator = Authenticator(settings.service_keys, verifier)
    async with Server(settings, ROOM, authenticator, [CONTRACT]) as server:
        nowhere = aio.insecure_channel("127.0.0.1:1")
        probe = Probe(server, nowhere, authority, behaviour, thrice, verifier)
        await nowhere.close()

        async def answer(request: Any, context: Any) -> Any:
            return await probe.behaviour(request, context)

        async def answers(request: Any, context: Any) -> AsyncGenerator[Any, None]:
            async with contextlib.aclosing(probe.stream(request, context)) as messages:
                async for message in messages:
                    yield message

        kinds: dict[tuple[bool, bool], Any] = {
            (False, False): partial(grpc.unary_unary_rpc_method_handler, answer),
            (False, True): partial(grpc.unary_stream_rpc_method_handler, answers),
            (True, False): partial(grpc.stream_unary_rpc_method_handler, answer),
            (True, True): partial(grpc.stream_stream_rpc_method_handler, answers),
        }
        handlers: dict[str, Any] = {
            method.name: kinds[method.client_streaming, method.server_streaming](
                Ask.FromString, Answer.SerializeToString
            )
            for method in CONTRACT.methods
        }
        # Under their names, as generated code does: only these are served by the native transport.
        server.grpc.add_registered_method_handlers(CONTRACT.full_name, handlers)
        server.grpc.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(CONTRACT.full_name, handlers),)
        )
        yield probe


def _bytes_of(request: Any) -> bytes:
    return request if isinstance(request, bytes) else bytes(request.SerializeToString())
