"""A new user's first day, through both services."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from finity.auth.v1 import auth_pb2
from finity.usage.v1 import usage_pb2
from grpc import StatusCode, aio

from tests.factories import an_address, answers_with, eventually, make_event, to_wire
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, bearer, open_house, refusal_of

ALLOWANCE = 100


async def until(call: Callable[[], Awaitable[Any]], reason: str) -> None:
    """Repeats a call until it is refused for a reason, or answered if that is ""."""
    await eventually(lambda: answers_with(call(), reason))


async def test_a_first_day(
    database_url: str, redis_url: str, transport: str, clock: FakeClock
) -> None:
    """Register, find the allowance, log in, get credits, use tools, look, log out."""
    async with open_house(
        database_url, redis_url, transport, clock, signup_credits=ALLOWANCE
    ) as house:
        email = an_address()
        register = auth_pb2.RegisterRequest(email=email, password=PASSWORD)
        user = (await house.auth.Register(register)).user
        login = auth_pb2.LoginRequest(email=email, password=PASSWORD)
        tokens = (await house.auth.Login(login)).tokens
        await use_credits(house, bearer(tokens.access_token), user.user_id, clock)

        await house.auth.Logout(auth_pb2.LogoutRequest(), metadata=bearer(tokens.access_token))
        balance = usage_pb2.GetBalanceRequest()
        await until(
            lambda: house.usage.GetBalance(balance, metadata=bearer(tokens.access_token)),
            "TOKEN_REVOKED",
        )
        refresh = auth_pb2.RefreshSessionRequest(refresh_token=tokens.refresh_token)
        with pytest.raises(aio.AioRpcError) as refused:
            await house.auth.RefreshSession(refresh)
        assert refusal_of(refused.value) == (StatusCode.UNAUTHENTICATED, "SESSION_ENDED")


async def use_credits(
    house: House, me: tuple[tuple[str, str], ...], user_id: str, clock: FakeClock
) -> None:
    """Grants, records, refuses and lists, as the user and a service see it."""
    balance = usage_pb2.GetBalanceRequest(user_id="me")
    await until(lambda: house.usage.GetBalance(balance, metadata=me), "")
    assert (await house.usage.GetBalance(balance, metadata=me)).balance.available == ALLOWANCE
    grant = usage_pb2.GrantCreditsRequest(
        user_id=user_id, amount=50, source="promotion", source_ref="welcome"
    )
    granted = await house.usage.GrantCredits(grant, metadata=house.service)
    assert granted.balance.available == ALLOWANCE + 50

    user = (await house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=me)).user
    assert user.user_id == user_id
    recorded: list[str] = []
    for cost in (30, 60, 59):
        clock.advance(seconds=1)
        event = to_wire(make_event(UUID(user_id), clock.now(), credits=cost))
        request = usage_pb2.RecordUsageRequest(event=event)
        answer = await house.usage.RecordUsage(request, metadata=house.service)
        recorded.insert(0, event.event_id)
    assert answer.available == 1
    event = to_wire(make_event(UUID(user_id), clock.now(), credits=2))
    with pytest.raises(aio.AioRpcError) as refused:
        await house.usage.RecordUsage(
            usage_pb2.RecordUsageRequest(event=event), metadata=house.service
        )
    assert refusal_of(refused.value) == (StatusCode.FAILED_PRECONDITION, "NO_CREDITS")

    assert (await house.usage.GetBalance(balance, metadata=me)).balance.available == 1
    page = await house.usage.ListUsage(usage_pb2.ListUsageRequest(), metadata=me)
    assert [entry.event_id for entry in page.records] == recorded
    with pytest.raises(aio.AioRpcError) as refused:
        await house.usage.GrantCredits(grant, metadata=me)
    assert refusal_of(refused.value) == (StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")
