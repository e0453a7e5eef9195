"""
The native transport, with a shorter way for unary calls behind the gate.

The library takes three coroutines from a message to its handler, asks for each call what kind of
function that is, and copies the metadata: a tenth of what the answering thread does for a metered
call (decision 30). This is written against names of pygrpc-native 0.5.0 that are not public;
`_run` and `_Context` of its aio.py are what to look at when its version changes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import grpc
import pygrpc_native.aio
from grpc import aio
from pygrpc_native.aio import _Call
from pygrpc_native.aio import _Context as _LibraryContext

_Behavior = Callable[[bytes, aio.ServicerContext[Any, Any]], Awaitable[Any]]


class _Context(_LibraryContext):
    """The library's, but that metadata are the plain tuples they came as."""

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:  # type: ignore[override]
        return self._call.metadata

    def initial_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """Returns what is to be sent before the answer."""
        return self._initial_metadata or ()


class Server(pygrpc_native.aio.Server):
    """
    A grpc.aio.Server whose unary handlers get raw bytes if they have no deserializer.

    Those must be coroutine functions.
    """

    async def _run(self, call: _Call, payload: bytes) -> None:
        behavior, front = call.handler.unary_unary, self._front
        raw = call.handler.request_deserializer is None and not self._interceptors
        if behavior is None or not raw or front is None:
            await super()._run(call, payload)
            return
        context = _Context(self, call)
        try:
            within_limits, request = self._request(call, payload)
            if not within_limits:
                return
            answer = await cast("_Behavior", behavior)(request, context)
            if context.code() not in (None, grpc.StatusCode.OK):
                self._fail(call, context, None)
                return
            data = self._encode(call, context, answer)
            if data is not None:
                front.respond(
                    call.call_id,
                    data,
                    initial_metadata=list(context.initial_metadata()),
                    trailing_metadata=list(context.trailing_metadata()),
                )
        except asyncio.CancelledError:
            # Where the client left or the server stops there is nobody to tell.
            if not call.cancelled and not self._stopping:
                front.fail(call.call_id, grpc.StatusCode.CANCELLED.value[0], "Cancelled")
        except Exception as error:  # noqa: BLE001 - of whatever kind, the library answers it
            self._failed(call, context, error)
        finally:
            self._calls.pop(call.call_id, None)
            call.finish(context)
