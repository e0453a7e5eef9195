"""
The gate that every handler of every room stands behind. In this order, for every call:

1. request id   the caller's x-request-id, or a new one; bound to every log line
2. caller       the authorization metadata, unless the method is PUBLIC
3. access       the contract's access rule and subject
4. validation   the contract's field rules
5. deadline     the caller's, or the default, less a margin so that our refusal arrives in time
6. error        a Refusal becomes a status; anything else INTERNAL with an error id
7. log, metrics one line per refusal or defect, counters by method and code

A server stream is admitted in the same way, and its credentials are looked at again before
each message. A stream of requests passes 1 to 3 before its first message is read, then each
message passes 2 to 4; it ends with STOPPING when the server drains, as does every new call.
Steps 1 to 6 are in answering.py. Health and reflection belong to no room and pass untouched.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import grpc
from grpc import aio
from prometheus_client import Gauge

from chassis import status
from chassis.answering import Answering, Context
from chassis.callers import Authenticator
from chassis.contract import Method
from chassis.errors import Refusal
from chassis.refusals import MethodUnknown
from chassis.tallies import TALLIES

_INFRASTRUCTURE = ("grpc.health.", "grpc.reflection.")

RUNNING = Gauge("grpc_server_running_calls", "Calls being answered now.")

# Generic in its stubs, not when it runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

# By whether requests and answers are streams.
_KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., Handler]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class Gate(grpc.GenericRpcHandler):
    """Everything between the wire and a handler."""

    def __init__(
        self,
        room: str,
        methods: Mapping[str, Method],
        authenticator: Authenticator,
        *,
        default_deadline: float,
        max_concurrent_calls: int,
    ) -> None:
        """`default_deadline` is in seconds."""
        self._room = room
        self._methods = methods
        answering = Answering(authenticator, default_deadline)
        self._answers: dict[str, Callable[..., Awaitable[Any]]] = {
            "unary_unary": answering.unary,
            "unary_stream": answering.stream,
            "stream_unary": answering.collect,
            "stream_stream": answering.exchange,
        }
        self._max_calls = max_concurrent_calls
        self._running = 0
        # As a stream: one that waited for a message would answer some streams INTERNAL.
        self._unknown: Handler = grpc.stream_stream_rpc_method_handler(self._refuse)
        self.drain = answering.draining.begin
        RUNNING.set_function(lambda: self._running)

    async def finished(self) -> None:
        """Returns when no call is under way; once the gate drains, each new one is over at once."""
        while self._running:  # noqa: ASYNC110 - an event would cost every call
            await asyncio.sleep(0.01)

    def gated(self, service: str, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """Returns the handlers of a service behind the gate; health and reflection as they are."""
        if service.startswith(_INFRASTRUCTURE):
            return dict(handlers)
        return {
            name: self._gated(self._methods.get(f"/{service}/{name}"), handler)
            for name, handler in handlers.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> MaybeHandler:
        """Answers what no service has; to be asked after all of them."""
        infrastructure = handler_call_details.method.lstrip("/").startswith(_INFRASTRUCTURE)
        return None if infrastructure else self._unknown

    def _gated(self, method: Method | None, handler: Handler) -> Handler:
        if method is None:
            return self._unknown
        kind, make = _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
        answer = functools.partial(self._answers[kind], method, getattr(handler, kind))
        # Bytes come in raw so that a bad message is our refusal, not the library's.
        gated: Handler = make(
            self._counted(method, answer),
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )
        return gated

    def _counted(self, method: Method, answer: Callable[..., Awaitable[Any]]) -> Any:
        tally = TALLIES.of(method.service, method.name)

        async def counted(raw: Any, context: Context) -> Any:
            started = time.perf_counter()
            code = grpc.StatusCode.CANCELLED.value[0]
            self._running += 1
            try:
                answered = await answer(raw, context, full=self._running > self._max_calls)
                code = 0
                return answered
            except Refusal as refusal:
                code = refusal.code.value
                await status.abort(context, refusal, self._room)
                raise
            finally:
                self._running -= 1
                tally.add(code, time.perf_counter() - started)

        return counted

    async def _refuse(self, _: Any, context: Context) -> None:
        await status.abort(context, MethodUnknown(), self._room)


class Guarded:
    """What generated code adds servicers to: every handler then stands behind the gate."""

    def __init__(self, server: aio.Server, gate: Gate) -> None:
        self._server = server
        self._gate = gate

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        """Adds a service, once for each of the two ways in which servers look for a handler."""
        gated = self._gate.gated(service, handlers)
        self._server.add_registered_method_handlers(service, gated)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, gated),)
        )

    def add_generic_rpc_handlers(self, _: Sequence[grpc.GenericRpcHandler]) -> None:
        """Does nothing: generated code adds the same handlers as registered ones."""
