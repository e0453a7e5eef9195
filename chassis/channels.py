"""
Calling other services: every call has a deadline, carries the request id and the
service key, and comes back as a message or as the other side's typed refusal.

Never `methodConfig.timeout` in a service config: grpcio mistimes it (grpc/grpc#34547).
"""

import json
from collections.abc import Callable
from typing import Any

from grpc import aio

from chassis.calls import DEADLINE_MARGIN, REQUEST_ID, current_call
from chassis.refusals import DeadlinePassed
from chassis.status import from_rpc_error

_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                # Rooms call each other with keys or ids of their own: all may be sent again.
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
)
_OPTIONS = [
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A developer's http_proxy is not for calls between services.
    ("grpc.enable_http_proxy", 0),
    # A long list of revocations must not be what makes revocations fail.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
]


def open_channel(address: str, service_key: str, default_deadline: float) -> aio.Channel:
    """Opens a channel to host:port; calls that name no deadline get the default, in seconds."""
    return aio.insecure_channel(
        address,
        options=_OPTIONS,
        interceptors=[_Outgoing(service_key, default_deadline), _OutgoingStream(service_key)],
    )


class _Outgoing(aio.UnaryUnaryClientInterceptor):
    def __init__(self, service_key: str, default_deadline: float) -> None:
        self._service_key = service_key
        self._default_deadline = default_deadline

    async def intercept_unary_unary(
        self,
        continuation: Callable[[aio.ClientCallDetails, Any], Any],
        client_call_details: aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        call = await continuation(self._widen(client_call_details), request)
        try:
            return await call
        except aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    def _widen(self, details: aio.ClientCallDetails) -> aio.ClientCallDetails:
        metadata = aio.Metadata(*(details.metadata or ()))
        timeout = details.timeout or self._default_deadline
        try:
            current = current_call()
        except LookupError:
            current = None
        if current is not None:
            metadata.add(REQUEST_ID, current.request_id)
            timeout = min(timeout, current.remaining() - DEADLINE_MARGIN)
            if timeout <= 0:
                raise DeadlinePassed
        if self._service_key:
            metadata.add("authorization", f"Bearer {self._service_key}")
        return aio.ClientCallDetails(
            details.method, timeout, metadata, details.credentials, details.wait_for_ready
        )


class _OutgoingStream(aio.UnaryStreamClientInterceptor):
    """A server stream has no deadline of ours; what ends it is the reader's to translate."""

    def __init__(self, service_key: str) -> None:
        self._service_key = service_key

    async def intercept_unary_stream(
        self,
        continuation: Callable[[aio.ClientCallDetails, Any], Any],
        client_call_details: aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        details = client_call_details
        metadata = aio.Metadata(*(details.metadata or ()))
        if self._service_key:
            metadata.add("authorization", f"Bearer {self._service_key}")
        widened = aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )
        return await continuation(widened, request)
