"""The auth room's refusals; finity/auth/v1/auth.proto describes them to callers."""

from chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
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


class MfaRequired(Unauthenticated):
    """This account has a second factor; complete the sign-in with the challenge given."""

    reason = "MFA_REQUIRED"


class MfaChallengeInvalid(Unauthenticated):
    """This challenge is over, was used or had too many tries; sign in again."""

    reason = "MFA_CHALLENGE_INVALID"


class MfaCodeInvalid(Unauthenticated):
    """This code is wrong, too old or was used already."""

    reason = "MFA_CODE_INVALID"


class TotpAlreadyEnrolled(AlreadyExists):
    """The account has an authenticator app already; disable it first."""

    reason = "TOTP_ALREADY_ENROLLED"


class MfaNotEnrolled(FailedPrecondition):
    """The account has no second factor, or none that waits to be confirmed."""

    reason = "MFA_NOT_ENROLLED"


class PasskeyInvalid(Unauthenticated):
    """This answer of a passkey proves nothing; start again."""

    reason = "PASSKEY_INVALID"


class PasskeyCloned(Unauthenticated):
    """The counter of this passkey went back, so there may be a copy of it; use another factor."""

    reason = "PASSKEY_CLONED"


class PasskeyNotFound(NotFound):
    """The account has no passkey of this id."""

    reason = "PASSKEY_NOT_FOUND"


class PasskeyRejected(InvalidArgument):
    """This passkey cannot be registered; start again."""

    reason = "PASSKEY_REJECTED"


class PasskeyLimit(FailedPrecondition):
    """The account has as many passkeys as it may; delete one first."""

    reason = "PASSKEY_LIMIT"
