"""
Refusal ⇄ google.rpc.Status: the only translator between what code raises and what the wire carries.

Every status has an ErrorInfo; invalid input adds BadRequest, anything worth
sending again adds RetryInfo (AIP-193).
"""

from typing import TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from chassis.errors import Code, FieldViolation, Refusal
from chassis.refusals import DeadlinePassed, PeerUnavailable

T = TypeVar("T", bound=Message)

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN_SUFFIX = ".finity"
# What a caller should wait when a retryable refusal names no delay of its own, in seconds.
DEFAULT_RETRY_AFTER = 0.2
_RETRYABLE = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED}
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
# What a status that gives no reason means: nobody of ours answered.
_UNEXPLAINED = {kind.code: kind() for kind in (DeadlinePassed, PeerUnavailable)}


# Codes that speak of the calling service rather than of the call.
NOT_FOR_CALLERS = {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.INTERNAL, Code.UNKNOWN}


class PeerRefusal(Refusal):
    """Another service refused the call."""

    def __init__(
        self,
        code: Code,
        reason: str,
        domain: str,
        *,
        message: str,
        metadata: dict[str, str],
        retry_after: float | None,
        violations: tuple[FieldViolation, ...] = (),
    ) -> None:
        super().__init__(message, metadata=metadata, retry_after=retry_after, violations=violations)
        self.code = code  # type: ignore[misc]
        self.reason = reason  # type: ignore[misc]
        self.domain = domain  # type: ignore[misc]


def grpc_code(code: Code) -> grpc.StatusCode:
    return _GRPC_CODES[code.value]


def to_status(refusal: Refusal, room: str) -> status_pb2.Status:
    """Returns the wire status; `room` gives the domain of the room's own refusals."""
    status = status_pb2.Status(code=refusal.code.value, message=refusal.message)
    info = error_details_pb2.ErrorInfo(
        reason=refusal.reason,
        domain=refusal.domain or room + DOMAIN_SUFFIX,
        metadata=refusal.metadata,
    )
    status.details.add().Pack(info)
    if refusal.violations:
        status.details.add().Pack(_bad_request(refusal))
    retry_after = refusal.retry_after
    if retry_after is None and refusal.code in _RETRYABLE:
        retry_after = DEFAULT_RETRY_AFTER
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(retry_after * 1000))
        status.details.add().Pack(retry)
    return status


async def abort(context: aio.ServicerContext[object, object], refusal: Refusal, room: str) -> None:
    """Ends the call with the refusal; always raises grpc.aio.AbortError."""
    status = to_status(refusal, room).SerializeToString()
    await context.abort(grpc_code(refusal.code), refusal.message, ((DETAILS_KEY, status),))


def from_rpc_error(error: aio.AioRpcError) -> PeerRefusal:
    """Rebuilds the refusal another service answered, reason and all."""
    code = Code(error.code().value[0])
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            status.ParseFromString(value)
    info = _detail(status, error_details_pb2.ErrorInfo())
    retry = _detail(status, error_details_pb2.RetryInfo())
    bad = _detail(status, error_details_pb2.BadRequest())
    if info is None:
        # The library's own words name addresses; they stay here.
        known = _UNEXPLAINED.get(code)
        return PeerRefusal(
            code,
            known.reason if known else code.name,
            "finity",
            message=known.message if known else "Another service failed.",
            metadata={},
            retry_after=None,
        )
    return PeerRefusal(
        code,
        info.reason,
        info.domain,
        message=error.details() or code.name,
        metadata=dict(info.metadata),
        retry_after=retry.retry_delay.ToMilliseconds() / 1000 if retry else None,
        violations=tuple(
            FieldViolation(field.field, field.reason, field.description)
            for field in (bad.field_violations if bad else ())
        ),
    )


def _bad_request(refusal: Refusal) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for violation in refusal.violations:
        bad.field_violations.add(
            field=violation.field, reason=violation.rule, description=violation.description
        )
    return bad


def _detail(status: status_pb2.Status, kind: T) -> T | None:
    for detail in status.details:
        if detail.Unpack(kind):
            return kind
    return None
