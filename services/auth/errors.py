"""The auth room's refusals; finity/auth/v1/auth.proto describes them to callers."""

from chassis.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
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


class OAuthProviderUnknown(NotFound):
    """No identity provider of this name is configured."""

    reason = "OAUTH_PROVIDER_UNKNOWN"


class OAuthProviderUnavailable(Unavailable):
    """The identity provider did not answer as it should; start again later."""

    reason = "OAUTH_PROVIDER_UNAVAILABLE"


class OAuthDenied(FailedPrecondition):
    """The sign-in was refused at the identity provider."""

    reason = "OAUTH_DENIED"


class OAuthStateInvalid(Unauthenticated):
    """This is not the answer to a sign-in that you started and that is still open; start again."""

    reason = "OAUTH_STATE_INVALID"


class OAuthCodeInvalid(Unauthenticated):
    """The identity provider does not accept this authorization code; start again."""

    reason = "OAUTH_CODE_INVALID"


class OAuthIdTokenInvalid(Unauthenticated):
    """The identity provider's answer does not prove who signs in; start again."""

    reason = "OAUTH_ID_TOKEN_INVALID"


class AccountExistsLinkRequired(AlreadyExists):
    """This e-mail address has an account; sign in to it as before, then link this identity."""

    reason = "ACCOUNT_EXISTS_LINK_REQUIRED"


class EmailNotVerifiedByProvider(FailedPrecondition):
    """The identity provider gives no e-mail address of yours that it has verified."""

    reason = "EMAIL_NOT_VERIFIED_BY_PROVIDER"


class IdentityAlreadyLinked(AlreadyExists):
    """This identity is linked to another account."""

    reason = "IDENTITY_ALREADY_LINKED"


class LastSignInMethod(FailedPrecondition):
    """Nobody could sign in to the account without this; set a password first."""

    reason = "LAST_SIGN_IN_METHOD"


class SelfBan(FailedPrecondition):
    """Nobody bans itself; ask another administrator."""

    reason = "SELF_BAN"


class BanExpiryPassed(InvalidArgument):
    """A ban must end in the future; leave the end out for a ban without one."""

    reason = "BAN_EXPIRY_PASSED"


class UserNotActive(FailedPrecondition):
    """This cannot be done to an account in its present state."""

    reason = "USER_NOT_ACTIVE"


class ImpersonationDenied(PermissionDenied):
    """Whoever acts as somebody else may not do this in their name."""

    reason = "IMPERSONATION_DENIED"


class AdminNotImpersonable(FailedPrecondition):
    """An administrator cannot be impersonated."""

    reason = "ADMIN_NOT_IMPERSONABLE"


class RoleNotGrantable(PermissionDenied):
    """A service neither gives nor takes the role of an administrator; one of them has to do it."""

    reason = "ROLE_NOT_GRANTABLE"


class MailSecretInvalid(Unauthenticated):
    """The link or code is wrong, used, expired or replaced by a newer one; ask for a new mail."""

    reason = "MAIL_SECRET_INVALID"


class MailTooSoon(ResourceExhausted):
    """A mail of this kind was sent a moment ago; come back after the delay given."""

    reason = "MAIL_TOO_SOON"


class EmailNotVerified(FailedPrecondition):
    """The account's e-mail address is not verified yet; follow the link of the mail first."""

    reason = "EMAIL_NOT_VERIFIED"


class SessionNotFound(NotFound):
    """The user has no session of this id."""

    reason = "SESSION_NOT_FOUND"


class WatchFellBehind(Aborted):
    """The stream is read too slowly; open it again with the last as_of_time."""

    reason = "WATCH_FELL_BEHIND"


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
