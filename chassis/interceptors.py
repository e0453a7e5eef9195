"""
The one server interceptor. In this order, for every call of every room:

1. request id   the caller's x-request-id, or a new one; bound to every log line
2. caller       the authorization metadata, unless the method is PUBLIC
3. access       the contract's access rule and subject
4. validation   the contract's field rules
5. deadline     the caller's, or the default, less a margin so that our refusal arrives in time
6. error        a Refusal becomes a status; anything else INTERNAL with an error id
7. log, metrics one line per refusal or defect, counters by method and code

Health and reflection belong to no room and pass through untouched.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import structlog
from finity.options.v1 import options_pb2
from google.protobuf.message import Message
from grpc import aio
from prometheus_client import Counter, Gauge, Histogram

from chassis import status
from chassis.callers import PUBLIC, Authenticator, admit, settle_subject
from chassis.calls import DEADLINE_MARGIN, DEADLINE_ROUNDING, Call, enter, request_id
from chassis.contract import Method, validate
from chassis.errors import Code, Refusal
from chassis.refusals import DeadlinePassed, Defect, MethodUnknown, Overloaded

NO_DEADLINE = 10**9
_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")

HANDLED = Counter(
    "grpc_server_handled_total", "Calls answered.", ["grpc_service", "grpc_method", "grpc_code"]
)
SECONDS = Histogram(
    "grpc_server_handling_seconds", "Time to answer.", ["grpc_service", "grpc_method"]
)
RUNNING = Gauge("grpc_server_running_calls", "Calls being answered now.")

_log = structlog.get_logger()
Behavior = Callable[[Message, Any], Awaitable[Message]]
# Generic in its stubs, not when it runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class Gate(aio.ServerInterceptor):
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
        self._authenticator = authenticator
        self._default_deadline = default_deadline
        self._max_calls = max_concurrent_calls
        self._running = 0
        self._handlers: dict[str, Handler] = {}
        RUNNING.set_function(lambda: self._running)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        path = handler_call_details.method
        known = self._handlers.get(path)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if path.startswith(_INFRASTRUCTURE):
            return handler
        method = self._methods.get(path)
        if method is None or handler is None or handler.unary_unary is None:
            # As a stream: one that waited for a message would answer some streams INTERNAL.
            return grpc.stream_stream_rpc_method_handler(self._unknown)
        gated: Handler = grpc.unary_unary_rpc_method_handler(
            self._gated(method, handler.unary_unary),
            # Bytes come in raw so that a bad message is our refusal, not the library's.
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )
        self._handlers[path] = gated
        return gated

    def _gated(self, method: Method, behavior: Behavior) -> Any:
        seconds = SECONDS.labels(method.service, method.name)
        handled = {
            code.value[0]: HANDLED.labels(method.service, method.name, code.name)
            for code in grpc.StatusCode
        }

        async def answer(raw: bytes, context: aio.ServicerContext[Any, Any]) -> Message:
            started = time.perf_counter()
            code = grpc.StatusCode.CANCELLED.value[0]
            self._running += 1
            try:
                response = await self._answer(method, behavior, raw, context)
                code = 0
                return response
            except Refusal as refusal:
                code = refusal.code.value
                await status.abort(context, refusal, self._room)
                raise
            finally:
                self._running -= 1
                handled[code].inc()
                seconds.observe(time.perf_counter() - started)

        return answer

    async def _answer(
        self, method: Method, behavior: Behavior, raw: bytes, context: aio.ServicerContext[Any, Any]
    ) -> Message:
        metadata = dict(context.invocation_metadata() or ())
        call = Call(method, request_id(metadata), PUBLIC, self._ends(context))
        enter(call)
        try:
            if self._running > self._max_calls:
                raise Overloaded(retry_after=0.5)
            may_name_anyone = False
            if options_pb2.PUBLIC not in method.allow:
                # Before a byte of the body is read: decoding is work that strangers must not order.
                call.caller = await self._authenticator.authenticate(
                    str(metadata.get("authorization", ""))
                )
                may_name_anyone = admit(method, call.caller)
            request = method.parse(raw)
            settle_subject(method, request, call.caller, may_name_anyone)
            validate(request)
            return await _within_deadline(call, behavior, request, context)
        except status.PeerRefusal as refusal:
            # What another service holds against us is no answer to our caller.
            if refusal.code in status.NOT_FOR_CALLERS:
                raise _defect(call, refusal) from refusal
            _log_refusal(call, refusal)
            raise
        except Refusal as refusal:
            _log_refusal(call, refusal)
            raise
        except (asyncio.CancelledError, aio.AbortError):
            raise
        except Exception as error:
            raise _defect(call, error) from error

    def _ends(self, context: aio.ServicerContext[Any, Any]) -> float:
        remaining = context.time_remaining()
        if remaining is None or remaining > NO_DEADLINE:
            remaining = self._default_deadline
        return time.monotonic() + remaining * (1 - DEADLINE_ROUNDING) - DEADLINE_MARGIN

    async def _unknown(self, _: Any, context: aio.ServicerContext[Any, Any]) -> None:
        await status.abort(context, MethodUnknown(), self._room)


async def _within_deadline(
    call: Call, behavior: Behavior, request: Message, context: aio.ServicerContext[Any, Any]
) -> Message:
    remaining = call.remaining()
    if remaining <= 0:
        raise DeadlinePassed
    deadline = asyncio.timeout(remaining)
    try:
        async with deadline:
            return await behavior(request, context)
    except TimeoutError:
        if deadline.expired():
            raise DeadlinePassed from None
        raise


def _log_refusal(call: Call, refusal: Refusal) -> None:
    broken = [f"{violation.field}: {violation.rule}" for violation in refusal.violations]
    _log.info(
        "refused",
        **call.fields(),
        code=Code(refusal.code).name,
        reason=refusal.reason,
        **({"fields": broken} if broken else {}),
    )


def _defect(call: Call, error: Exception) -> Defect:
    error_id = uuid.uuid4().hex[:12]
    _log.error("defect", **call.fields(), error_id=error_id, exc_info=error)
    return Defect(metadata={"error_id": error_id})
