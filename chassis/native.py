"""
The native transport, with a shorter way for calls to the loop and for unary ones from there.

The library takes three coroutines from a message to its handler, asks for each call what kind of
function the handler is, and copies the metadata: a tenth of what the answering thread does for a
metered call. Its own thread, which tells the loop of calls, takes the interpreter from the loop
for each few of them (decision 30). This module is written against names of pygrpc-native 0.5.0
that are not public: `_run`, `_dispatch`, `_on_events`, `_Context` and `_Call` of its aio.py are
what to compare when its version changes.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import grpc
import pygrpc_native.aio
from grpc import aio
from pygrpc_native import EVENT_CANCEL
from pygrpc_native.aio import _Call
from pygrpc_native.aio import _Context as _LibraryContext

# The library's number. A call that was given up while more than these wait before it still begins.
_AT_ONCE = 64
_CLOSED_SECONDS = 1
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
        # Held but for the moment in which the loop, out of calls, lets the waiting thread go on:
        # so at any time one of the two looks for calls, and a batch comes after those before it.
        self._idle = threading.Lock()
        self._idle.acquire()

    def _dispatch(self) -> None:
        """Waits for calls in a thread of its own, as long as the loop does not look for them."""
        front, loop = self._front, self._loop
        if front is None or loop is None:
            raise RuntimeError("the server was not started")
        while (events := front.recv_batch_details(_AT_ONCE)) is not None:
            if not self._hand_over(loop, events):
                front.close()
                return

    def _hand_over(self, loop: asyncio.AbstractEventLoop, events: list[Any]) -> bool:
        """Sleeps until the loop has no more calls; False if it was closed without stop()."""
        try:
            loop.call_soon_threadsafe(self._on_events, events)
        except RuntimeError:
            return False
        while not self._idle.acquire(timeout=_CLOSED_SECONDS):
            if loop.is_closed():
                return False
        return True

    def _on_events(self, events: list[Any]) -> None:
        given_up = {event[1] for event in events if event[0] == EVENT_CANCEL}
        if given_up:
            # A task that is cancelled before its first step never comes to where the library
            # forgets its call: a call that came with its end is not begun.
            events = [e for e in events if e[0] == EVENT_CANCEL or e[1] not in given_up]
        try:
            super()._on_events(events)
        finally:
            # After what these calls do first: by then there are more of them, if there are many.
            asyncio.get_running_loop().call_soon(self._look_for_more)

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
