"""QuotaService, and refusals for what it limits, through real channels on both transports."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from finity.auth.v1 import auth_pb2
from finity.usage.v1 import quota_pb2, quota_pb2_grpc, usage_pb2
from google.rpc import error_details_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status

from chassis.postgres import Connection
from tests.factories import connect_owner, eventually, ledger_faults, make_event, to_wire
from tests.fakes import FakeClock
from tests.running import House, Person, info_of, open_house, refusal_of

DAY, MINUTE, MONTH = (
    quota_pb2.QUOTA_WINDOW_DAY,
    quota_pb2.QUOTA_WINDOW_MINUTE,
    quota_pb2.QUOTA_WINDOW_MONTH,
)
FREE, PRO = quota_pb2.ACCOUNT_ROLE_FREE, quota_pb2.ACCOUNT_ROLE_PRO
INVALID = (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
NOON = datetime(2026, 11, 25, 12, 0, 30, tzinfo=UTC)


@pytest.fixture
def clock() -> FakeClock:
    """Noon, far from the end of any window but the minute's."""
    clock = FakeClock()
    clock.advance(seconds=(NOON - clock.now()).total_seconds())
    return clock


def quotas(house: House) -> quota_pb2_grpc.QuotaServiceStub:
    return quota_pb2_grpc.QuotaServiceStub(house.usage_channel)


async def refused(call: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


def retry_of(error: aio.AioRpcError) -> float:
    """Returns RetryInfo.retry_delay in seconds."""
    status = rpc_status.from_call(error)
    assert status is not None
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToMilliseconds()) / 1000
    raise AssertionError("no RetryInfo")


async def limit(house: House, **fields: Any) -> quota_pb2.Quota:
    request = quota_pb2.SetQuotaRequest(**{"tool_name": "*", "window": DAY, **fields})
    return (await quotas(house).SetQuota(request, metadata=house.service)).quota


def an_event(person: Person, clock: FakeClock, **fields: Any) -> usage_pb2.UsageEvent:
    return to_wire(make_event(UUID(person.user_id), clock.now(), **fields))


async def record(house: House, event: usage_pb2.UsageEvent) -> usage_pb2.RecordUsageResponse:
    request = usage_pb2.RecordUsageRequest(event=event)
    return await house.usage.RecordUsage(request, metadata=house.service)


async def check(house: House, person: Person, **fields: Any) -> quota_pb2.CheckQuotaResponse:
    request = quota_pb2.CheckQuotaRequest(**{"user_id": "me", "tool_name": "search", **fields})
    return await quotas(house).CheckQuota(request, metadata=person.metadata)


async def test_a_refusal_says_what_a_product_shows(house: House, clock: FakeClock) -> None:
    """QUOTA_WINDOW and RATE_LIMIT: code, metadata and a delay until it refills, everywhere."""
    person = await house.person(credits=100)
    await limit(house, user_id=person.user_id, tool_name="search", max_credits=10)
    await limit(house, user_id=person.user_id, tool_name="write", window=MINUTE, max_calls=0)
    await record(house, an_event(person, clock, credits=7))
    day = {
        "tool": "search",
        "window": "DAY",
        "unit": "credits",
        "limit": "10",
        "used": "7",
        "resets_at": "2026-11-26T00:00:00Z",
    }
    minute = {
        "tool": "write",
        "window": "MINUTE",
        "unit": "calls",
        "limit": "0",
        "used": "0",
        "resets_at": "2026-11-25T12:01:00Z",
    }
    expected = [
        ("QUOTA_WINDOW", day, 43170, an_event(person, clock, credits=4)),
        ("RATE_LIMIT", minute, 30, an_event(person, clock, tool_name="write")),
    ]
    for reason, metadata, seconds, event in expected:
        error = await refused(record(house, event))
        assert refusal_of(error) == (StatusCode.RESOURCE_EXHAUSTED, reason)
        assert (dict(info_of(error).metadata), retry_of(error)) == (metadata, seconds)
        checked = await check(house, person, tool_name=event.tool_name, credits=event.credits)
        assert (checked.admitted, checked.reason, dict(checked.metadata), checked.available) == (
            False,
            reason,
            metadata,
            93,
        )
        assert checked.message == error.details()
    batch = usage_pb2.RecordUsageBatchRequest(events=[event for *_, event in expected])
    results = (await house.usage.RecordUsageBatch(batch, metadata=house.service)).results
    assert [(r.reason, dict(r.metadata)) for r in results] == [(r, m) for r, m, *_ in expected]
    assert all(result.message for result in results)
    assert (await check(house, person, credits=3)).admitted


async def test_too_few_credits_say_how_many(
    database_url: str, redis_url: str, transport: str, clock: FakeClock
) -> None:
    """NO_CREDITS has balance, credits, short_by and, if an allowance comes, when it does."""
    async with open_house(
        database_url, redis_url, transport, clock, usage_allowance_free=10
    ) as house:
        person = await house.person(credits=5)
        error = await refused(record(house, an_event(person, clock, credits=18)))
        assert refusal_of(error) == (StatusCode.FAILED_PRECONDITION, "NO_CREDITS")
        told = {
            "balance": "15",
            "credits": "18",
            "short_by": "3",
            "refills_at": "2026-12-01T00:00:00Z",
        }
        assert dict(info_of(error).metadata) == told
        checked = await check(house, person, credits=18)
        assert (checked.reason, dict(checked.metadata)) == ("NO_CREDITS", told)


async def test_quotas_are_listed_in_pages(house: House, clock: FakeClock) -> None:
    """Those that hold, "*" first and the shortest window first, with use and refill."""
    person, other = await house.person(credits=10), await house.person()
    await limit(house, role=FREE, tool_name="search", max_calls=1)
    for tool in ("*", "a", "search"):
        for window in (MONTH, MINUTE, DAY):
            await limit(house, user_id=person.user_id, tool_name=tool, window=window, max_calls=9)
    await record(house, an_event(person, clock, credits=2))
    request = quota_pb2.ListQuotasRequest(page_size=4)
    listed: list[quota_pb2.QuotaStatus] = []
    while True:
        page = await quotas(house).ListQuotas(request, metadata=person.metadata)
        listed += page.quotas
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    found = [(status.quota.tool_name, status.quota.window) for status in listed]
    assert found == [(t, w) for t in ("*", "a", "search") for w in (MINUTE, DAY, MONTH)]
    assert {status.quota.user_id for status in listed} == {person.user_id}
    used = [(status.used_calls, status.used_credits) for status in listed]
    assert used == [(0, 0)] * 6 + [(1, 2)] * 3
    assert listed[-1].reset_time.ToJsonString() == "2026-12-01T00:00:00Z"
    error = await refused(quotas(house).ListQuotas(request, metadata=other.metadata))
    assert refusal_of(error) == (StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    (status,) = (
        await quotas(house).ListQuotas(quota_pb2.ListQuotasRequest(), metadata=other.metadata)
    ).quotas
    assert (status.quota.role, status.quota.max_calls) == (FREE, 1)
    assert not status.quota.HasField("max_credits")


async def test_requests_have_rules(house: House) -> None:
    """A scope, a tool, a window and a limit are needed; a zone has to be one."""
    person = await house.person()
    for fields in (
        {"user_id": person.user_id},
        {"max_calls": 1},
        {"user_id": "me", "max_calls": 1},
        {"user_id": person.user_id, "max_calls": -1},
        {"user_id": person.user_id, "max_credits": 10**12 + 1},
        {"user_id": person.user_id, "max_calls": 1, "tool_name": "a*"},
        {"user_id": person.user_id, "max_calls": 1, "window": 0},
        {"role": 0, "max_calls": 1},
        {"role": 4, "max_calls": 1},
    ):
        assert refusal_of(await refused(limit(house, **fields))) == INVALID
    nobody = (StatusCode.NOT_FOUND, "USER_NOT_FOUND")
    error = await refused(limit(house, user_id=str(uuid4()), max_calls=1))
    assert refusal_of(error) == nobody
    for name in ("Mars/Olympus", "localtime", "../UTC", "america/new_york", ""):
        request = quota_pb2.SetTimeZoneRequest(time_zone=name)
        error = await refused(quotas(house).SetTimeZone(request, metadata=person.metadata))
        assert refusal_of(error) == INVALID


async def test_a_user_has_a_day_of_its_own(house: House, clock: FakeClock) -> None:
    """Whoever owns the account sets its zone; days end there from then on."""
    person = await house.person()
    await limit(house, user_id=person.user_id, max_calls=1)
    request = quota_pb2.SetTimeZoneRequest(user_id="me", time_zone="Asia/Kolkata")
    for _ in range(2):
        answer = await quotas(house).SetTimeZone(request, metadata=person.metadata)
        assert answer.time_zone == "Asia/Kolkata"
    listed = await quotas(house).ListQuotas(
        quota_pb2.ListQuotasRequest(user_id=person.user_id), metadata=house.service
    )
    assert listed.quotas[0].reset_time.ToJsonString() == "2026-11-25T18:30:00Z"
    gone = quota_pb2.DeleteQuotaRequest(user_id=person.user_id, tool_name="*", window=DAY)
    for deleted in (True, False):
        assert (await quotas(house).DeleteQuota(gone, metadata=house.service)).deleted is deleted


async def test_a_role_comes_from_auth(
    database_url: str, redis_url: str, transport: str, clock: FakeClock
) -> None:
    """SetRole reaches usage by its event: the allowance is topped up, the role's quotas hold."""
    async with (
        open_house(
            database_url,
            redis_url,
            transport,
            clock,
            usage_allowance_free=10,
            usage_allowance_pro=100,
        ) as house,
        connect_owner(database_url) as owner,
    ):
        person = await house.person()
        await limit(house, role=PRO, max_calls=1)
        for role, sequence in ((auth_pb2.ROLE_PRO, 2), (auth_pb2.ROLE_FREE, 3)):
            await house.auth.SetRole(
                auth_pb2.SetRoleRequest(user_id=person.user_id, role=role, reason="paid"),
                metadata=house.service,
            )
            await eventually(lambda sequence=sequence: has_sequence(owner, sequence))  # type: ignore[misc]
        request = usage_pb2.GetBalanceRequest(user_id=person.user_id)
        answer = await house.usage.GetBalance(request, metadata=house.service)
        assert answer.balance.available == 100
        old = quota_pb2.SetAccountRoleRequest(user_id=person.user_id, role=PRO, sequence=2)
        kept = await quotas(house).SetAccountRole(old, metadata=house.service)
        assert (kept.role, kept.available) == (FREE, 100)
        new = quota_pb2.SetAccountRoleRequest(user_id=person.user_id, role=PRO, sequence=4)
        assert (await quotas(house).SetAccountRole(new, metadata=house.service)).role == PRO
        await record(house, an_event(person, clock))
        error = await refused(record(house, an_event(person, clock)))
        assert refusal_of(error) == (StatusCode.RESOURCE_EXHAUSTED, "QUOTA_WINDOW")
        assert await ledger_faults(owner) == []


async def has_sequence(owner: Connection, sequence: int) -> bool:
    found = await owner.fetchval("SELECT max(role_sequence) FROM credit_accounts")
    return bool(found == sequence)


async def test_fifty_calls_at_the_edge(house: House, clock: FakeClock, owner: Connection) -> None:
    """Of 50 calls at once by somebody who may make 7 a minute exactly 7 are admitted."""
    person = await house.person(credits=100)
    await limit(house, user_id=person.user_id, window=MINUTE, max_calls=7)
    calls = (record(house, an_event(person, clock)) for _ in range(50))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refusals = [refusal_of(answer) for answer in answers if isinstance(answer, aio.AioRpcError)]
    assert Counter(refusals) == {(StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMIT"): 43}
    assert await ledger_faults(owner) == []
