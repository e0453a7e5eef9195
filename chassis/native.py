"""
The native transport, with a shorter way for calls to the loop and for unary ones from there.

The library takes three coroutines from a message to its handler, asks for each call what kind of
function that is, and copies the metadata: a tenth of what the answering thread does for a metered
call (decision 30). And a thread that tells the loop of its calls is in its way. This is
written against names of pygrpc-native 0.5.0 that are not public; `_run`, `_dispatch`,
`_on_events` and `_Context` of its aio.py are what to look at when its version changes.
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import grpc
import pygrpc_native.aio
from grpc import aio
from pygrpc_native import EVENT_CANCEL
from pygrpc_native.aio import _Call
from pygrpc_native.aio import _Context as _LibraryContext

_AT_ONCE = 64
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle = threading.Semaphore(0)

    def _dispatch(self) -> None:
        """Waits for calls in a thread of its own, as long as the loop does not look for them."""
        front, loop = self._front, self._loop
        if front is None or loop is None:
            raise RuntimeError("the server was not started")
        while (events := front.recv_batch_details(_AT_ONCE)) is not None:
            try:
                loop.call_soon_threadsafe(self._on_events, events)
            except RuntimeError:
                # The loop was closed without stop().
                front.close()
                return
            self._idle.acquire()

    def _on_events(self, events: list[Any]) -> None:
        try:
            super()._on_events(events)
            for kind, call_id, *_ in events:
                if kind == EVENT_CANCEL:
                    self._forget_unbegun(call_id)
        finally:
            # After what these calls do first: by then there are more of them, if there are many.
            asyncio.get_running_loop().call_soon(self._look_for_more)

    def _forget_unbegun(self, call_id: int) -> None:
        call = self._calls.get(call_id)
        if call is None or call.task is None:
            return
        # What ends before its first step never comes to where a call is taken out.
        if inspect.getcoroutinestate(call.task.get_coro()) == inspect.CORO_CREATED:  # type: ignore[arg-type]
            del self._calls[call_id]

    def _look_for_more(self) -> None:
        if self._front is not None and (events := self._front.recv_batch_details(_AT_ONCE, 0)):
            self._on_events(events)
        else:
            self._idle.release()

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
