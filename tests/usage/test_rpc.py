"""UsageService through real channels, on both transports."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from finity.auth.v1 import auth_pb2
from finity.usage.v1 import usage_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode, aio

from chassis.postgres import Connection
from services.usage.domain.metering import NEWEST_EVENT, OLDEST_EVENT
from services.usage.store import accounts
from tests.factories import (
    an_address,
    connect_owner,
    eventually,
    ledger_faults,
    make_event,
    to_wire,
)
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, Person, info_of, open_house, refusal_of

ACCEPTED = usage_pb2.UsageResult.OUTCOME_ACCEPTED
DUPLICATE = usage_pb2.UsageResult.OUTCOME_DUPLICATE
REJECTED = usage_pb2.UsageResult.OUTCOME_REJECTED
INVALID = (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def refused(call: Awaitable[Any]) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


async def refusal(call: Awaitable[Any]) -> tuple[StatusCode, str]:
    return refusal_of(await refused(call))


def an_event(person: Person, clock: FakeClock, **changes: Any) -> usage_pb2.UsageEvent:
    """An event of now; `changes` are those of make_event."""
    at = clock.now() + changes.pop("after", timedelta())
    return to_wire(make_event(UUID(person.user_id), at, **changes))


async def record(house: House, event: usage_pb2.UsageEvent) -> usage_pb2.RecordUsageResponse:
    request = usage_pb2.RecordUsageRequest(event=event)
    return await house.usage.RecordUsage(request, metadata=house.service)


async def grant(house: House, **fields: Any) -> usage_pb2.GrantCreditsResponse:
    request = usage_pb2.GrantCreditsRequest(
        **{"amount": 10, "source": "test", "source_ref": "r", **fields}
    )
    return await house.usage.GrantCredits(request, metadata=house.service)


async def balance(house: House, person: Person) -> usage_pb2.Balance:
    answer = await house.usage.GetBalance(
        usage_pb2.GetBalanceRequest(user_id="me"), metadata=person.metadata
    )
    return answer.balance


async def test_registration_opens_the_account_once(
    database_url: str, redis_url: str, transport: str, clock: FakeClock, owner: Connection
) -> None:
    """The user-registered event opens the account with its allowance; five deliveries, once."""
    async with open_house(database_url, redis_url, transport, clock, signup_credits=100) as house:
        register = auth_pb2.RegisterRequest(email=an_address(), password=PASSWORD)
        user_id = (await house.auth.Register(register)).user.user_id
        done = "SELECT state = 'done' FROM auth_deliveries WHERE consumer = 'usage'"
        for _ in range(5):
            await eventually(lambda: owner.fetchval(done))
            request = usage_pb2.GetBalanceRequest(user_id=user_id)
            answer = await house.usage.GetBalance(request, metadata=house.service)
            assert (answer.balance.available, answer.balance.version) == (100, 1)
            await owner.execute("UPDATE auth_deliveries SET state = 'due' WHERE consumer = 'usage'")
    assert await owner.fetchval("SELECT attempts > 1 FROM auth_deliveries WHERE consumer = 'usage'")
    assert await ledger_faults(owner) == []


async def test_an_event_spends_its_credits_once(house: House, clock: FakeClock) -> None:
    """The first record spends, a repeat says duplicate and spends nothing."""
    person = await house.person(credits=10)
    event = an_event(person, clock, credits=3)
    first = await record(house, event)
    assert (first.duplicate, first.available) == (False, 7)
    again = await record(house, event)
    assert (again.duplicate, again.available) == (True, 7)
    now = await balance(house, person)
    assert (now.granted, now.used, now.available, now.reserved) == (10, 3, 7, 0)


async def test_an_event_is_refused_by_reason(house: House, clock: FakeClock) -> None:
    """Each reason not to meter an event has its code; metadata says what a caller needs."""
    person = await house.person(credits=10)
    event = an_event(person, clock, credits=3)
    await record(house, event)
    error = await refused(record(house, an_event(person, clock, credits=8)))
    assert refusal_of(error) == (StatusCode.FAILED_PRECONDITION, "NO_CREDITS")
    assert dict(info_of(error).metadata) == {"balance": "7", "credits": "8", "short_by": "1"}
    assert info_of(error).domain == "usage.finity"
    event.credits = 4
    assert await refusal(record(house, event)) == (StatusCode.ALREADY_EXISTS, "EVENT_ID_REUSED")
    event = an_event(person, clock)
    event.user_id = str(uuid4())
    assert await refusal(record(house, event)) == (
        StatusCode.FAILED_PRECONDITION,
        "ACCOUNT_NOT_OPEN",
    )
    out_of_range = (StatusCode.OUT_OF_RANGE, "EVENT_TIME_OUT_OF_RANGE")
    late = -OLDEST_EVENT - timedelta(seconds=1)
    early = NEWEST_EVENT + timedelta(seconds=1)
    for after in (late, early):
        assert await refusal(record(house, an_event(person, clock, after=after))) == out_of_range
    # The last moment a UUIDv7 can name is in the year 10889.
    for time in ("00000000-0000", "ffffffff-ffff"):
        event = an_event(person, clock)
        event.event_id = f"{time}-7fff-bfff-ffffffffffff"
        assert await refusal(record(house, event)) == out_of_range


async def test_an_event_of_a_held_account_is_to_come_back(
    house: House, clock: FakeClock, owner: Connection
) -> None:
    """While somebody holds the account its events are CONFLICT, alone and in a batch."""
    person = await house.person(credits=10)
    event = an_event(person, clock)
    async with owner.transaction():
        await accounts.lock_books(owner, [UUID(person.user_id)], clock.now())
        assert await refusal(record(house, event)) == (StatusCode.ABORTED, "CONFLICT")
        request = usage_pb2.RecordUsageBatchRequest(events=[event])
        answer = await house.usage.RecordUsageBatch(request, metadata=house.service)
        assert [result.reason for result in answer.results] == ["CONFLICT"]
    assert not (await record(house, event)).duplicate


async def test_an_event_keeps_the_contract(house: House, clock: FakeClock) -> None:
    """Ids, tools and credits out of their bounds are INVALID_REQUEST; the bounds are good."""
    person = await house.person(credits=1_000_000)
    for name, value in (
        ("event_id", str(uuid4())),
        ("event_id", ""),
        ("user_id", "me"),
        ("tool_name", ""),
        ("tool_name", "two words"),
        ("tool_name", "x" * 101),
        ("credits", -1),
        ("credits", 1_000_001),
    ):
        event = an_event(person, clock)
        setattr(event, name, value)
        assert await refusal(record(house, event)) == INVALID, name
    empty = usage_pb2.RecordUsageRequest()
    assert await refusal(house.usage.RecordUsage(empty, metadata=house.service)) == INVALID
    await record(house, an_event(person, clock, credits=1_000_000, tool_name="x" * 100))
    await record(house, an_event(person, clock, credits=0))


async def test_a_batch_answers_each_event(house: House, clock: FakeClock) -> None:
    """Every event of a batch has its own result in its place, whatever the others are."""
    person = await house.person(credits=5)
    first = an_event(person, clock, credits=2)
    reused = an_event(person, clock, credits=1)
    reused.event_id = first.event_id
    beyond = an_event(person, clock)
    beyond.event_id = "ffffffff-ffff-7fff-bfff-ffffffffffff"
    unknown = an_event(person, clock)
    unknown.user_id = str(uuid4())
    expected = [
        (first, ACCEPTED, ""),
        (usage_pb2.UsageEvent(), REJECTED, "INVALID_REQUEST"),
        (first, DUPLICATE, ""),
        (reused, REJECTED, "EVENT_ID_REUSED"),
        (an_event(person, clock, credits=4), REJECTED, "NO_CREDITS"),
        (beyond, REJECTED, "EVENT_TIME_OUT_OF_RANGE"),
        (an_event(person, clock, after=timedelta(days=-36)), REJECTED, "EVENT_TIME_OUT_OF_RANGE"),
        (unknown, REJECTED, "ACCOUNT_NOT_OPEN"),
        (an_event(person, clock, credits=3), ACCEPTED, ""),
    ]
    request = usage_pb2.RecordUsageBatchRequest(events=[event for event, _, _ in expected])
    answer = await house.usage.RecordUsageBatch(request, metadata=house.service)
    assert [(r.outcome, r.reason) for r in answer.results] == [(o, r) for _, o, r in expected]
    assert all(bool(r.message) == (r.outcome == REJECTED) for r in answer.results)
    assert (await balance(house, person)).available == 0


async def test_a_batch_has_its_bounds(house: House, clock: FakeClock) -> None:
    """A batch holds 1 to 1,000 events; one of only bad events is answered too."""
    person = await house.person(credits=1000)
    for count, good in ((0, False), (1000, True), (1001, False)):
        events = [an_event(person, clock) for _ in range(count)]
        call = house.usage.RecordUsageBatch(
            usage_pb2.RecordUsageBatchRequest(events=events), metadata=house.service
        )
        if good:
            assert Counter(r.outcome for r in (await call).results) == {ACCEPTED: count}
        else:
            assert await refusal(call) == INVALID
    bad = usage_pb2.RecordUsageBatchRequest(events=[usage_pb2.UsageEvent()] * 3)
    answer = await house.usage.RecordUsageBatch(bad, metadata=house.service)
    assert {result.reason for result in answer.results} == {"INVALID_REQUEST"}


async def test_a_thousand_calls_spend_what_a_hundred_have(
    house: House, clock: FakeClock, owner: Connection
) -> None:
    """Of 1,000 calls at once for 100 credits exactly 100 are accepted and the balance is 0."""
    person = await house.person(credits=100)
    calls = (record(house, an_event(person, clock)) for _ in range(1000))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refusals = [refusal_of(answer) for answer in answers if isinstance(answer, aio.AioRpcError)]
    assert Counter(refusals) == {(StatusCode.FAILED_PRECONDITION, "NO_CREDITS"): 900}
    accepted = [a.available for a in answers if isinstance(a, usage_pb2.RecordUsageResponse)]
    assert len(accepted) == 100
    assert min(accepted) == 0
    now = await balance(house, person)
    assert (now.available, now.used) == (0, 100)
    assert await ledger_faults(owner) == []


async def test_a_grant_is_given_once(house: House) -> None:
    """The same reference gets the first grant again, with the terms asked or the default ones."""
    person = await house.person()
    first = await grant(house, user_id=person.user_id)
    assert first.grant.category == usage_pb2.GRANT_CATEGORY_PROMOTIONAL
    assert (first.grant.priority, first.grant.remaining) == (50, 10)
    again = await grant(house, user_id=person.user_id, priority=50)
    assert again == first
    paid = await grant(
        house,
        user_id=person.user_id,
        source_ref="paid",
        priority=0,
        category=usage_pb2.GRANT_CATEGORY_PAID,
    )
    assert (paid.grant.priority, paid.grant.category) == (0, usage_pb2.GRANT_CATEGORY_PAID)
    assert paid.balance.available == 20


async def test_a_grant_is_refused_by_reason(house: House, owner: Connection) -> None:
    """GRANT_REF_REUSED, USER_NOT_FOUND and BALANCE_LIMIT are told apart."""
    person = await house.person()
    await grant(house, user_id=person.user_id)
    assert await refusal(grant(house, user_id=person.user_id, amount=11)) == (
        StatusCode.ALREADY_EXISTS,
        "GRANT_REF_REUSED",
    )
    nobody = (StatusCode.NOT_FOUND, "USER_NOT_FOUND")
    assert await refusal(grant(house, user_id=str(uuid4()))) == nobody
    request = usage_pb2.OpenAccountRequest(user_id=str(uuid4()))
    assert await refusal(house.usage.OpenAccount(request, metadata=house.service)) == nobody
    await owner.execute("ALTER TABLE credit_accounts DISABLE TRIGGER credit_accounts_balance")
    await owner.execute("UPDATE credit_accounts SET granted = 1000000000000000")
    assert await refusal(grant(house, user_id=person.user_id, source_ref="more")) == (
        StatusCode.OUT_OF_RANGE,
        "BALANCE_LIMIT",
    )
    for fields in ({"amount": 0}, {"source": "Two words"}, {"source_ref": ""}, {"priority": 101}):
        assert await refusal(grant(house, user_id=person.user_id, **fields)) == INVALID


async def test_there_is_no_balance_before_the_account(house: House) -> None:
    """A user without an account is ACCOUNT_NOT_OPEN."""
    request = usage_pb2.GetBalanceRequest(user_id=str(uuid4()))
    assert await refusal(house.usage.GetBalance(request, metadata=house.service)) == (
        StatusCode.FAILED_PRECONDITION,
        "ACCOUNT_NOT_OPEN",
    )


async def test_usage_is_listed_without_gap_or_repeat(house: House, clock: FakeClock) -> None:
    """Pages together are every event, newest first, even while more are recorded."""
    person = await house.person(credits=1000)
    expected: list[str] = []
    for _ in range(7):
        event = an_event(person, clock)
        await record(house, event)
        expected.insert(0, event.event_id)
        clock.advance(seconds=1)
    listed: list[str] = []
    request = usage_pb2.ListUsageRequest(page_size=3)
    while True:
        page = await house.usage.ListUsage(request, metadata=person.metadata)
        listed += [entry.event_id for entry in page.records]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        await record(house, an_event(person, clock))
    assert listed == expected


async def test_a_page_token_is_bound_to_its_filters(house: House, clock: FakeClock) -> None:
    """start_time is in, end_time is not; with other filters a token is PAGE_TOKEN_INVALID."""
    person, other = await house.person(credits=10), await house.person()
    events = []
    for _ in range(4):
        events.append(an_event(person, clock))
        await record(house, events[-1])
        clock.advance(seconds=1)
    everything = await house.usage.ListUsage(usage_pb2.ListUsageRequest(), metadata=person.metadata)
    times = [entry.event_time for entry in reversed(everything.records)]
    window = usage_pb2.ListUsageRequest(start_time=times[1], end_time=times[3], page_size=1)
    page = await house.usage.ListUsage(window, metadata=person.metadata)
    assert [entry.event_id for entry in page.records] == [events[2].event_id]
    window.page_token = page.next_page_token
    last = await house.usage.ListUsage(window, metadata=person.metadata)
    assert [entry.event_id for entry in last.records] == [events[1].event_id]
    assert last.next_page_token == ""

    token = page.next_page_token
    invalid = (StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    for request, caller in (
        (usage_pb2.ListUsageRequest(page_token=token), person),
        (usage_pb2.ListUsageRequest(page_token=token, start_time=times[0]), person),
        (usage_pb2.ListUsageRequest(page_token="garbage"), person),
        (
            usage_pb2.ListUsageRequest(page_token=token, start_time=times[1], end_time=times[3]),
            other,
        ),
    ):
        assert await refusal(house.usage.ListUsage(request, metadata=caller.metadata)) == invalid
    impossible = usage_pb2.ListUsageRequest(start_time=Timestamp(seconds=10**15))
    assert await refusal(house.usage.ListUsage(impossible, metadata=person.metadata)) == INVALID


async def test_a_full_queue_is_refused(
    database_url: str, redis_url: str, transport: str, clock: FakeClock
) -> None:
    """More events than may wait are OVERLOADED; a batch that does not fit is refused whole."""
    async with (
        open_house(database_url, redis_url, transport, clock, queue_events=2000) as house,
        connect_owner(database_url) as owner,
    ):
        person = await house.person(credits=2000)

        overloaded = (StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")

        async def record_batch() -> tuple[StatusCode, str] | None:
            events = [an_event(person, clock) for _ in range(1000)]
            request = usage_pb2.RecordUsageBatchRequest(events=events)
            try:
                await house.usage.RecordUsageBatch(request, metadata=house.service)
            except aio.AioRpcError as error:
                return refusal_of(error)
            return None

        async with owner.transaction():
            # One batch is held up in its flush and at most one waits until this ends.
            await owner.execute("LOCK TABLE credit_accounts IN ACCESS EXCLUSIVE MODE")
            batches = [asyncio.create_task(record_batch()) for _ in range(6)]
            answers = asyncio.as_completed(batches)
            for _ in range(4):
                assert await next(answers) == overloaded
        rest = [await answer for answer in answers]
        assert set(rest) <= {None, overloaded}
        accepted = rest.count(None)
        assert accepted
        assert (await balance(house, person)).used == 1000 * accepted
