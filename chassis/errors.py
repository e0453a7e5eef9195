"""
Typed refusals: what a use case raises when the answer is no.

A class is one gRPC code and one reason (ErrorInfo.reason); its docstring is the
message a caller reads. status.py alone turns a refusal into a wire status.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The canonical codes (google/rpc/code.proto) a refusal can carry."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that breaks one rule of the contract."""

    field: str
    """Path of the field, e.g. "event.tool_name"."""
    rule: str
    """Id of the rule, e.g. "string.max_len"."""
    description: str


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """The call was refused."""

    code: ClassVar[Code]
    reason: ClassVar[str]
    domain: ClassVar[str | None] = None
    """ErrorInfo.domain; None means the room that answers, "<room>.finity"."""

    def __init__(
        self,
        message: str | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        violations: tuple[FieldViolation, ...] = (),
    ) -> None:
        """`retry_after` is in seconds and makes the status carry RetryInfo."""
        self.message = message or " ".join((self.__doc__ or "").split())
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.violations = violations
        super().__init__(self.message)


class InvalidArgument(Refusal):
    """The request is wrong whatever the state of the system."""

    code = Code.INVALID_ARGUMENT


class OutOfRange(Refusal):
    """The request asks for something past a bound."""

    code = Code.OUT_OF_RANGE


class NotFound(Refusal):
    """There is no such thing."""

    code = Code.NOT_FOUND


class AlreadyExists(Refusal):
    """There is such a thing already."""

    code = Code.ALREADY_EXISTS


class Unauthenticated(Refusal):
    """The caller did not prove who it is."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(Refusal):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class FailedPrecondition(Refusal):
    """The state of the system must change before this call can succeed."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(Refusal):
    """A bound was reached."""

    code = Code.RESOURCE_EXHAUSTED


class Aborted(Refusal):
    """A concurrent change got in between; send the same call again."""

    code = Code.ABORTED


class Unavailable(Refusal):
    """The service cannot answer now; send the same call again."""

    code = Code.UNAVAILABLE
