"""
The refusals any service can answer; finity/errors/v1/errors.proto describes them to callers.

Their ErrorInfo.domain is "finity", a room's own is "<room>.finity".
"""

from chassis.errors import (
    Aborted,
    AlreadyExists,
    Code,
    InvalidArgument,
    PermissionDenied,
    Refusal,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)


class InvalidRequest(InvalidArgument):
    """The request breaks the rules of its contract; each field is named in the details."""

    reason, domain = "INVALID_REQUEST", "finity"


class MalformedMessage(InvalidArgument):
    """The request's bytes are not an encoded message of this method's request type."""

    reason, domain = "MALFORMED_MESSAGE", "finity"


class CredentialsMissing(Unauthenticated):
    """This method needs credentials: `authorization: Bearer <token or service key>`."""

    reason, domain = "CREDENTIALS_MISSING", "finity"


class CredentialsInvalid(Unauthenticated):
    """The token or service key is not valid here."""

    reason, domain = "CREDENTIALS_INVALID", "finity"


class TokenExpired(Unauthenticated):
    """The access token's lifetime is over; refresh the session."""

    reason, domain = "TOKEN_EXPIRED", "finity"


class TokenRevoked(Unauthenticated):
    """The access token was revoked; refresh the session or log in again."""

    reason, domain = "TOKEN_REVOKED", "finity"


class AccessDenied(PermissionDenied):
    """This method does not admit this kind of caller."""

    reason, domain = "ACCESS_DENIED", "finity"


class SubjectDenied(PermissionDenied):
    """A user may name only itself here."""

    reason, domain = "SUBJECT_DENIED", "finity"


class SubjectRequired(InvalidArgument):
    """A service must name the user the request is about."""

    reason, domain = "SUBJECT_REQUIRED", "finity"


class IdempotencyKeyReused(AlreadyExists):
    """This idempotency key was used before with another request."""

    reason, domain = "IDEMPOTENCY_KEY_REUSED", "finity"


class PageTokenInvalid(InvalidArgument):
    """This page token was not issued for this request; start again without one."""

    reason, domain = "PAGE_TOKEN_INVALID", "finity"


class DeadlinePassed(Refusal):
    """The call's deadline passed before the answer was ready."""

    code = Code.DEADLINE_EXCEEDED
    reason, domain = "DEADLINE_PASSED", "finity"


class Overloaded(ResourceExhausted):
    """Too much is waiting here already; come back after the delay given."""

    reason, domain = "OVERLOADED", "finity"


class DatabaseUnavailable(Unavailable):
    """The database did not answer; send the same call again."""

    reason, domain = "DATABASE_UNAVAILABLE", "finity"


class PeerUnavailable(Unavailable):
    """Another service this call needs did not answer; send the same call again."""

    reason, domain = "PEER_UNAVAILABLE", "finity"


class Stopping(Unavailable):
    """This process is about to stop; send what is not acknowledged again, to another one."""

    reason, domain = "STOPPING", "finity"


class Conflict(Aborted):
    """A concurrent change got in between; send the same call again."""

    reason, domain = "CONFLICT", "finity"


class TooManyAttempts(ResourceExhausted):
    """Too many attempts have failed; come back after the delay given."""

    reason, domain = "TOO_MANY_ATTEMPTS", "finity"


class MethodUnknown(Refusal):
    """No service here has this method."""

    code = Code.UNIMPLEMENTED
    reason, domain = "METHOD_UNKNOWN", "finity"


class Defect(Refusal):
    """Something is wrong on our side; give the error id to whoever runs the service."""

    code = Code.INTERNAL
    reason, domain = "DEFECT", "finity"
