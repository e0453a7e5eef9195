"""What a call that is not admitted is answered with."""

from datetime import datetime

from chassis.errors import Refusal
from chassis.refusals import Conflict
from chassis.times import to_timestamp
from services.usage.domain.metering import Outcome, Result, Short
from services.usage.domain.quotas import Exceeded
from services.usage.errors import (
    AccountClosed,
    AccountNotOpen,
    EventIdReused,
    NoCredits,
    QuotaWindow,
    RateLimit,
)

REFUSALS: dict[Outcome, type[Refusal]] = {
    Outcome.NO_CREDITS: NoCredits,
    Outcome.ACCOUNT_NOT_OPEN: AccountNotOpen,
    Outcome.ACCOUNT_CLOSED: AccountClosed,
    Outcome.EVENT_ID_REUSED: EventIdReused,
    Outcome.ACCOUNT_BUSY: Conflict,
    Outcome.QUOTA_WINDOW: QuotaWindow,
    Outcome.RATE_LIMIT: RateLimit,
}


def refusal_of(cost: int, result: Result, now: datetime) -> Refusal:
    """Returns the refusal of a call that costs so many credits, with all a product can show."""
    kind, why = REFUSALS[result.outcome], result.why
    if isinstance(why, Exceeded):
        left = (why.resets_at - now).total_seconds()
        return kind(metadata=why.told(), retry_after=max(left, 0.0))
    if result.outcome is Outcome.NO_CREDITS:
        told = {"balance": str(result.available), "credits": str(cost)}
        return kind(metadata=told | _short(why))
    return kind()


def _short(why: Short | None) -> dict[str, str]:
    if why is None:
        return {}
    refills = {"refills_at": _text(why.refills_at)} if why.refills_at else {}
    return {"short_by": str(why.by), **refills}


def _text(time: datetime) -> str:
    """RFC 3339, as JSON has a Timestamp."""
    return to_timestamp(time).ToJsonString()
