"""What tests of reservations share."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

from chassis.ids import uuid7
from chassis.refusals import Conflict
from services.usage.domain.holds import Hold
from services.usage.domain.requests import Commit, Overage, Request, Reserve
from services.usage.service.use_cases import UseCases
from tests.fakes import FakeClock

TTL = timedelta(minutes=5)


def a_hold(user_id: UUID, clock: FakeClock, **changes: Any) -> Reserve:
    """A reservation of ten credits for five minutes."""
    asked = Reserve(uuid7(clock.now()), user_id, 10, TTL, "write")
    return asked._replace(**changes)


def a_commit(asked: Reserve, used: int, **changes: Any) -> Commit:
    return Commit(asked.id, used, Overage.REFUSE, "")._replace(**changes)


async def reserve(usage: UseCases, user_id: UUID, clock: FakeClock, **changes: Any) -> Reserve:
    """Holds credits; returns what was asked for."""
    asked = a_hold(user_id, clock, **changes)
    await usage.reservations.ask(asked)
    return asked


async def persist(usage: UseCases, request: Request) -> tuple[Hold, int]:
    """Asks again while somebody else holds the account, as a caller would."""
    while True:
        try:
            return await usage.reservations.ask(request)
        except Conflict:
            await asyncio.sleep(0)


async def parts(usage: UseCases, user_id: UUID) -> tuple[int, int, int, int]:
    """Returns available, granted, used and reserved."""
    found = await usage.accounts.get_balance(user_id)
    return found.available, found.granted, found.used, found.reserved
