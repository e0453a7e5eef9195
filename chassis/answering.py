"""
From raw bytes to an answer: who calls, may they, is the request right, is there time.

The gate (gate.py) does this for every call; the order is written there.
"""

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import structlog
from finity.options.v1 import options_pb2
from google.protobuf.message import Message
from grpc import aio

from chassis import status
from chassis.callers import PUBLIC, Authenticator, admit, settle_subject
from chassis.calls import (
    DEADLINE_MARGIN,
    DEADLINE_ROUNDING,
    Call,
    caller_address,
    enter,
    request_id,
)
from chassis.contract import Method, validate
from chassis.deadlines import NEVER, Deadlines
from chassis.draining import Draining
from chassis.errors import Code, Refusal
from chassis.refusals import Defect, Overloaded

NO_DEADLINE = 10**9
_log = structlog.get_logger()
Context: TypeAlias = "aio.ServicerContext[Any, Any]"
Behavior = Callable[[Message, Any], Awaitable[Message]]
StreamBehavior = Callable[[Message, Any], AsyncGenerator[Message, None]]
Requests = AsyncGenerator[Message, None]
CollectBehavior = Callable[[Requests, Any], Awaitable[Message]]
ExchangeBehavior = Callable[[Requests, Any], AsyncGenerator[Message, None]]


class Answering:
    """Answers calls of every kind; every exception that leaves it is a Refusal or the library's."""

    def __init__(self, authenticator: Authenticator, default_deadline: float) -> None:
        """`default_deadline` is in seconds, for unary calls whose caller named none."""
        self._authenticator = authenticator
        self._default_deadline = default_deadline
        self._deadlines = Deadlines()
        self.draining = Draining()

    async def unary(
        self, method: Method, behavior: Behavior, raw: bytes, context: Context, *, full: bool
    ) -> Message:
        """Answers one call; Overloaded if the server is `full`."""
        call, authorization = self._enter(method, context, self._default_deadline)
        try:
            # Before a byte of the body is read: decoding is work that strangers must not order.
            may_name_anyone = await self._let_in(call, authorization, full=full)
            request = self._read(call, raw, may_name_anyone)
            with self._deadlines.until(call.ends):
                return await behavior(request, context)
        except Exception as error:
            _explain(call, error)
            raise

    async def stream(
        self, method: Method, behavior: StreamBehavior, raw: bytes, context: Context, *, full: bool
    ) -> None:
        """Writes what the handler yields; it has the caller's deadline or none."""
        call, authorization = self._enter(method, context, NEVER)
        try:
            may_name_anyone = await self._let_in(call, authorization, full=full)
            request = self._read(call, raw, may_name_anyone)
            messages = behavior(request, context)
            with self._deadlines.until(call.ends):
                await self._write(call, authorization, messages, context)
        except Exception as error:
            _explain(call, error)
            raise

    async def collect(
        self,
        method: Method,
        behavior: CollectBehavior,
        raws: AsyncIterator[bytes],
        context: Context,
        *,
        full: bool,
    ) -> Message:
        """Answers a stream of requests once; it has the caller's deadline or none."""
        call, authorization = self._enter(method, context, NEVER)
        try:
            await self._let_in(call, authorization, full=full)
            async with contextlib.aclosing(self._requests(call, authorization, raws)) as requests:
                with self._deadlines.until(call.ends):
                    return await behavior(requests, context)
        except Exception as error:
            _explain(call, error)
            raise

    async def exchange(
        self,
        method: Method,
        behavior: ExchangeBehavior,
        raws: AsyncIterator[bytes],
        context: Context,
        *,
        full: bool,
    ) -> None:
        """Writes what the handler yields while requests come; the caller's deadline or none."""
        call, authorization = self._enter(method, context, NEVER)
        try:
            await self._let_in(call, authorization, full=full)
            async with contextlib.aclosing(self._requests(call, authorization, raws)) as requests:
                messages = behavior(requests, context)
                with self._deadlines.until(call.ends):
                    await self._write(call, authorization, messages, context)
        except Exception as error:
            _explain(call, error)
            raise

    async def _requests(
        self, call: Call, authorization: str, raws: AsyncIterator[bytes]
    ) -> Requests:
        """Yields each request that may come in; raises Stopping once the server drains."""
        async for raw in self.draining.until_then(raws):
            # As with what is written: credentials may have ended since the stream began.
            yield self._read(call, raw, await self._authenticate(call, authorization))

    async def _write(
        self,
        call: Call,
        authorization: str,
        messages: AsyncGenerator[Message, None],
        context: Context,
    ) -> None:
        async with contextlib.aclosing(messages):
            async for message in messages:
                # Credentials may have ended since the stream began; nothing is written on them.
                await self._authenticate(call, authorization)
                await context.write(message)

    def _enter(self, method: Method, context: Context, default_deadline: float) -> tuple[Call, str]:
        metadata = dict(context.invocation_metadata() or ())
        remaining = context.time_remaining()
        if remaining is None or remaining > NO_DEADLINE:
            remaining = default_deadline
        ends = time.monotonic() + remaining * (1 - DEADLINE_ROUNDING) - DEADLINE_MARGIN
        call = Call(method, request_id(metadata), PUBLIC, ends)
        # Not a closure over the context: call and context would be garbage in a cycle.
        call.address = partial(caller_address, context.peer(), metadata)
        enter(call)
        return call, str(metadata.get("authorization", ""))

    async def _let_in(self, call: Call, authorization: str, *, full: bool) -> bool:
        self.draining.refuse_new()
        if full:
            raise Overloaded(retry_after=0.5)
        return await self._authenticate(call, authorization)

    def _read(self, call: Call, raw: bytes, may_name_anyone: bool) -> Message:
        request = call.method.parse(raw)
        settle_subject(call.method, request, call.caller, may_name_anyone)
        validate(request)
        return request

    async def _authenticate(self, call: Call, authorization: str) -> bool:
        """Finds out who calls; returns whether it may name any user."""
        if options_pb2.PUBLIC in call.method.allow:
            return False
        known = self._authenticator.known(authorization)
        call.caller = known or await self._authenticator.authenticate(authorization)
        return admit(call.method, call.caller)


def _explain(call: Call, error: Exception) -> None:
    """Logs an error; raises Defect if it is not the caller's to hear."""
    if isinstance(error, aio.AbortError):
        return
    # What another service holds against us is no answer to our caller.
    ours = isinstance(error, status.PeerRefusal) and error.code in status.NOT_FOR_CALLERS
    if not isinstance(error, Refusal) or ours:
        error_id = uuid.uuid4().hex[:12]
        _log.error("defect", **call.fields(), error_id=error_id, exc_info=error)
        raise Defect(metadata={"error_id": error_id}) from error
    broken = [f"{violation.field}: {violation.rule}" for violation in error.violations]
    _log.info(
        "refused",
        **call.fields(),
        # Not "code": codes of logins are secret.
        grpc_code=Code(error.code).name,
        reason=error.reason,
        **({"fields": broken} if broken else {}),
    )
