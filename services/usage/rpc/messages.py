"""What several contracts of the room say: balances, grants, and who acts."""

from datetime import datetime
from typing import Any

from finity.usage.v1 import usage_pb2
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from chassis.calls import current_call
from chassis.idempotency import key_of
from chassis.times import to_timestamp
from services.usage.domain.accounts import Balance
from services.usage.domain.grants import Category, Grant
from services.usage.service.ledger import Act

Context = aio.ServicerContext[Any, Any]
TO_CATEGORY = {
    Category.PROMOTIONAL: usage_pb2.GRANT_CATEGORY_PROMOTIONAL,
    Category.PAID: usage_pb2.GRANT_CATEGORY_PAID,
}
FROM_CATEGORY = {number: category for category, number in TO_CATEGORY.items()}


def act_of(request: Message, secret: bytes) -> Act:
    """Returns who makes the call being answered, and why."""
    reason = str(getattr(request, "reason", ""))
    return Act(current_call().caller.actor_key, reason, key_of(request, secret))


def to_balance(balance: Balance) -> usage_pb2.Balance:
    return usage_pb2.Balance(
        user_id=str(balance.user_id),
        available=balance.available,
        granted=balance.granted,
        used=balance.used,
        reserved=balance.reserved,
        version=balance.version,
        close_time=optional_time(balance.closed_at),
    )


def to_past_balance(
    at: datetime, balance: Balance, available: int, version: int
) -> usage_pb2.Balance:
    """An account at a past instant: what its ledger said then."""
    closed_at = balance.closed_at
    return usage_pb2.Balance(
        user_id=str(balance.user_id),
        available=available,
        version=version,
        close_time=optional_time(closed_at if closed_at and closed_at <= at else None),
    )


def to_grant(grant: Grant) -> usage_pb2.Grant:
    return usage_pb2.Grant(
        grant_id=str(grant.id),
        user_id=str(grant.user_id),
        amount=grant.terms.amount,
        remaining=grant.remaining,
        source=grant.terms.source,
        source_ref=grant.terms.source_ref,
        priority=grant.terms.priority,
        category=TO_CATEGORY[grant.terms.category],
        create_time=to_timestamp(grant.created_at),
        effective_time=to_timestamp(grant.effective_at),
        expire_time=optional_time(grant.terms.expires_at),
        void_time=optional_time(grant.voided_at),
    )


def optional_time(time: datetime | None) -> Timestamp | None:
    return to_timestamp(time) if time else None
