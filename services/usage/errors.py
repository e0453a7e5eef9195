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
