"""The auth room's refusals; finity/auth/v1/auth.proto describes them to callers."""

from chassis.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
)


class EmailAlreadyTaken(AlreadyExists):
    """An account with this e-mail address exists already."""

    reason = "EMAIL_ALREADY_TAKEN"


class LoginFailed(Unauthenticated):
    """No account has this e-mail address and password."""

    reason = "LOGIN_FAILED"


class RefreshTokenInvalid(Unauthenticated):
    """This refresh token was not issued here; log in again."""

    reason = "REFRESH_TOKEN_INVALID"


class RefreshTokenReplayed(Unauthenticated):
    """An old refresh token came back, so its session was ended; log in again."""

    reason = "REFRESH_TOKEN_REPLAYED"


class SessionEnded(Unauthenticated):
    """The session is over; log in again."""

    reason = "SESSION_ENDED"


class UserNotFound(NotFound):
    """No user has this id."""

    reason = "USER_NOT_FOUND"


class LastAdmin(FailedPrecondition):
    """The last administrator cannot lose the role; give it to somebody else first."""

    reason = "LAST_ADMIN"


class HashingBusy(ResourceExhausted):
    """Too many passwords wait to be checked for this call's deadline; come back after the delay."""

    reason = "HASHING_BUSY"


class StepUpRequired(Unauthenticated):
    """This needs a fresh proof of who you are; authenticate again and repeat the call."""

    reason = "STEP_UP_REQUIRED"


class SessionNotFound(NotFound):
    """The user has no session of this id."""

    reason = "SESSION_NOT_FOUND"


class WatchFellBehind(Aborted):
    """The stream is read too slowly; open it again with the last as_of_time."""

    reason = "WATCH_FELL_BEHIND"
