"""The auth room's refusals; finity/auth/v1/auth.proto describes them to callers."""

from chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
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


class AuthorizationPending(FailedPrecondition):
    """Nobody has approved this device's login yet; poll again after the interval."""

    reason = "AUTHORIZATION_PENDING"


class SlowDown(ResourceExhausted):
    """The device polls too often; the interval is longer from now on."""

    reason = "SLOW_DOWN"


class DeviceDenied(PermissionDenied):
    """This device's login was refused."""

    reason = "DEVICE_DENIED"


class DeviceCodeExpired(Unauthenticated):
    """The device's codes are over; start again."""

    reason = "DEVICE_CODE_EXPIRED"


class DeviceCodeInvalid(Unauthenticated):
    """No login that waits has this device code; start again."""

    reason = "DEVICE_CODE_INVALID"


class UserCodeInvalid(NotFound):
    """No device that waits shows this code; look at it once more, or let the device start again."""

    reason = "USER_CODE_INVALID"


class PasswordTooWeak(InvalidArgument):
    """This password is too easy to guess; choose another one."""

    reason = "PASSWORD_TOO_WEAK"


class PasswordNotSet(FailedPrecondition):
    """The account has no password to change; it signs in in another way."""

    reason = "PASSWORD_NOT_SET"


class CurrentPasswordWrong(PermissionDenied):
    """The current password is another one."""

    reason = "CURRENT_PASSWORD_WRONG"
