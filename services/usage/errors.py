"""The usage room's refusals; finity/usage/v1/usage.proto describes them to callers."""

from chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
)


class NoCredits(FailedPrecondition):
    """The balance is smaller than the event's credits."""

    reason = "NO_CREDITS"


class AccountNotOpen(FailedPrecondition):
    """The user has no credit account yet; one opens moments after registration."""

    reason = "ACCOUNT_NOT_OPEN"


class EventIdReused(AlreadyExists):
    """This event id was used before for another event."""

    reason = "EVENT_ID_REUSED"


class EventTimeOutOfRange(OutOfRange):
    """The event id's time is more than 35 days back or 5 minutes ahead."""

    reason = "EVENT_TIME_OUT_OF_RANGE"


class UserNotFound(NotFound):
    """No user has this id."""

    reason = "USER_NOT_FOUND"


class GrantRefReused(AlreadyExists):
    """The user has a grant of this source and source_ref with other terms."""

    reason = "GRANT_REF_REUSED"


class BalanceLimit(OutOfRange):
    """The account cannot hold that many credits."""

    reason = "BALANCE_LIMIT"


class AccountClosed(FailedPrecondition):
    """The user was erased; nothing is granted or spent any more."""

    reason = "ACCOUNT_CLOSED"


class ReservationNotFound(NotFound):
    """No reservation has this id."""

    reason = "RESERVATION_NOT_FOUND"


class ReservationIdReused(AlreadyExists):
    """This id was used before for another reservation."""

    reason = "RESERVATION_ID_REUSED"


class ReservationCommitted(FailedPrecondition):
    """The reservation was committed; only the same commit is answered again."""

    reason = "RESERVATION_COMMITTED"


class ReservationReleased(FailedPrecondition):
    """The reservation was released; its credits went back."""

    reason = "RESERVATION_RELEASED"


class ReservationExpired(FailedPrecondition):
    """The reservation's time was over; its credits went back."""

    reason = "RESERVATION_EXPIRED"


class ReservationExceeded(FailedPrecondition):
    """The commit is for more credits than are held, and its overage policy refuses that."""

    reason = "RESERVATION_EXCEEDED"


class GrantExpiryPassed(InvalidArgument):
    """A grant must expire in the future, and after it begins."""

    reason = "GRANT_EXPIRY_PASSED"


class GrantNotFound(NotFound):
    """The user has no grant with this id."""

    reason = "GRANT_NOT_FOUND"


class UsageNotFound(NotFound):
    """The user has no such tool call or entry of tool calls, or it is archived."""

    reason = "USAGE_NOT_FOUND"


class CorrectionLimit(OutOfRange):
    """More would come back than was spent and has not come back yet."""

    reason = "CORRECTION_LIMIT"


class OverdraftInUse(FailedPrecondition):
    """The account is further below zero than the limit would let it."""

    reason = "OVERDRAFT_IN_USE"


class AsOfTimeAhead(OutOfRange):
    """A balance is told of the past, not of the future."""

    reason = "AS_OF_TIME_AHEAD"


class RangeTooLong(OutOfRange):
    """The time range is longer than this grouping allows."""

    reason = "RANGE_TOO_LONG"


class UnknownTimeZone(InvalidArgument):
    """No time zone has this IANA name."""

    reason = "UNKNOWN_TIME_ZONE"


class TimeZoneNotWholeHours(InvalidArgument):
    """A day or month of this zone begins within an hour of UTC; group by HOUR, or in another."""

    reason = "TIME_ZONE_NOT_WHOLE_HOURS"


class TooManyWatchers(ResourceExhausted):
    """As many balances are watched as may be; come back after the delay given."""

    reason = "TOO_MANY_WATCHERS"


class LeaseFenced(FailedPrecondition):
    """Its holder has taken another lease since; this one ended and its credits went back."""

    reason = "LEASE_FENCED"


class QuotaWindow(ResourceExhausted):
    """A quota of the day or month leaves no room for this call; it refills at resets_at."""

    reason = "QUOTA_WINDOW"


class RateLimit(ResourceExhausted):
    """A quota of the minute leaves no room for this call; it refills at resets_at."""

    reason = "RATE_LIMIT"


class SequenceNotGrowing(InvalidArgument):
    """A batch's sequence is not greater than that of the batch before it on the stream."""

    reason = "SEQUENCE_NOT_GROWING"
