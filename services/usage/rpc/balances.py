"""An account on the wire, for every contract that shows one."""

from finity.usage.v1 import usage_pb2

from chassis.times import to_timestamp
from services.usage.domain.accounts import Balance


def to_balance(balance: Balance) -> usage_pb2.Balance:
    return usage_pb2.Balance(
        user_id=str(balance.user_id),
        available=balance.available,
        granted=balance.granted,
        used=balance.used,
        reserved=balance.reserved,
        version=balance.version,
        close_time=to_timestamp(balance.closed_at) if balance.closed_at else None,
    )
