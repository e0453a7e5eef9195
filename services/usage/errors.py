"""The usage room's refusals; finity/usage/v1/usage.proto describes them to callers."""

from chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfRange


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


class SequenceNotGrowing(InvalidArgument):
    """A batch's sequence is not greater than that of the batch before it on the stream."""

    reason = "SEQUENCE_NOT_GROWING"
