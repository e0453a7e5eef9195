"""LedgerService through real channels, on both transports."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from finity.auth.v1 import auth_pb2
from finity.usage.v1 import ledger_pb2, ledger_pb2_grpc, usage_pb2

from chassis.postgres import Connection
from chassis.times import to_timestamp
from tests.factories import answers_with, ledger_faults, make_event, to_wire
from tests.fakes import FakeClock
from tests.running import House, Person

INVALID = "INVALID_REQUEST"
KEY = {"reason": "why", "idempotency_key": "k"}


def ledger(house: House) -> ledger_pb2_grpc.LedgerServiceStub:
    return ledger_pb2_grpc.LedgerServiceStub(house.usage_channel)


async def record(house: House, clock: FakeClock, person: Person, cost: int) -> str:
    event = to_wire(make_event(UUID(person.user_id), clock.now(), credits=cost))
    await house.usage.RecordUsage(usage_pb2.RecordUsageRequest(event=event), metadata=house.service)
    return event.event_id


async def test_what_is_done_by_hand_names_who_did_it(
    house: House, clock: FakeClock, owner: Connection
) -> None:
    """An administrator's correction is in the ledger with actor and note, which users don't see."""
    person = await house.person(credits=10)
    admin = await house.person(role=auth_pb2.ROLE_ADMIN)
    event_id = await record(house, clock, person, 7)
    request = ledger_pb2.CorrectUsageRequest(
        user_id=person.user_id, event_id=event_id, credits=3, **KEY
    )
    corrected = await ledger(house).CorrectUsage(request, metadata=admin.metadata)
    assert (corrected.balance.available, corrected.balance.used) == (6, 4)
    again = await ledger(house).CorrectUsage(request, metadata=admin.metadata)
    assert again == corrected
    asked = ledger_pb2.ListEntriesRequest(user_id=person.user_id, page_size=1)
    told = (await ledger(house).ListEntries(asked, metadata=admin.metadata)).entries[0]
    assert told == corrected.entry
    assert (told.kind, told.actor, told.note) == (
        ledger_pb2.ENTRY_KIND_REVERSE,
        f"user:{admin.user_id}",
        "why",
    )
    hidden = (await ledger(house).ListEntries(asked, metadata=person.metadata)).entries[0]
    assert (hidden.entry_id, hidden.actor, hidden.note) == (told.entry_id, "", "")
    assert await ledger_faults(owner) == []


async def test_lists_go_on_where_they_stopped(house: House, clock: FakeClock) -> None:
    """Pages of grants and entries have each once; a token is good for its own list."""
    person = await house.person(credits=10)
    for number in range(4):
        clock.advance(seconds=1)
        await house.usage.GrantCredits(
            usage_pb2.GrantCreditsRequest(
                user_id=person.user_id,
                amount=1,
                source="test",
                source_ref=str(number),
                expire_time=to_timestamp(clock.now() + timedelta(days=1)),
            ),
            metadata=house.service,
        )
    references: list[str] = []
    token = ""
    while True:
        page = await ledger(house).ListGrants(
            ledger_pb2.ListGrantsRequest(page_size=2, page_token=token), metadata=person.metadata
        )
        references += [grant.source_ref for grant in page.grants]
        assert [expiry.credits for expiry in page.expiries] == [1, 1, 1, 1]
        token = page.next_page_token
        if not token:
            break
        foreign = ledger_pb2.ListEntriesRequest(page_token=token)
        call = ledger(house).ListEntries(foreign, metadata=person.metadata)
        assert await answers_with(call, "PAGE_TOKEN_INVALID")
    assert references == ["0", "1", "2", "3", "start"]


async def test_grants_have_terms_and_balances_a_past(house: House, clock: FakeClock) -> None:
    """effective_time, expire_time and as_of_time travel; refusals have their reasons."""
    person = await house.person(credits=10)
    before = clock.now()
    clock.advance(days=1)
    begin, end = clock.now() + timedelta(days=1), clock.now() + timedelta(days=2)
    terms: dict[str, Any] = {
        "user_id": person.user_id,
        "amount": 5,
        "source": "test",
        "effective_time": to_timestamp(begin),
        "expire_time": to_timestamp(end),
    }
    made = await house.usage.GrantCredits(
        usage_pb2.GrantCreditsRequest(source_ref="a", **terms), metadata=house.service
    )
    assert (made.grant.effective_time, made.grant.expire_time) == (
        to_timestamp(begin),
        to_timestamp(end),
    )
    terms["expire_time"] = to_timestamp(begin)
    late = usage_pb2.GrantCreditsRequest(source_ref="b", **terms)
    call = house.usage.GrantCredits(late, metadata=house.service)
    assert await answers_with(call, "GRANT_EXPIRY_PASSED")
    clock.advance(days=1)
    for at, available in ((before, 10), (begin, 15), (before - timedelta(days=1), 0)):
        request = usage_pb2.GetBalanceRequest(user_id=person.user_id, as_of_time=to_timestamp(at))
        answer = await house.usage.GetBalance(request, metadata=house.service)
        assert answer.balance.available == available
    ahead = usage_pb2.GetBalanceRequest(user_id=person.user_id, as_of_time=to_timestamp(end))
    future = house.usage.GetBalance(ahead, metadata=house.service)
    assert await answers_with(future, "AS_OF_TIME_AHEAD")


async def test_void_adjust_and_limit_answer_with_the_account(
    house: House, owner: Connection
) -> None:
    """Each returns what it made and the balance after it."""
    person = await house.person(credits=10)
    user_id = person.user_id
    add = ledger_pb2.AdjustCreditsRequest(user_id=user_id, amount=5, **KEY)
    added = await ledger(house).AdjustCredits(add, metadata=house.service)
    assert (added.balance.available, added.grant.source) == (15, "finity:adjustment")
    void = ledger_pb2.VoidGrantRequest(
        user_id=user_id, grant_id=added.grant.grant_id, reason="mistake"
    )
    voided = await ledger(house).VoidGrant(void, metadata=house.service)
    assert (voided.balance.available, voided.grant.HasField("void_time")) == (10, True)
    limit = ledger_pb2.SetOverdraftLimitRequest(user_id=user_id, overdraft_limit=4, reason="why")
    assert (await ledger(house).SetOverdraftLimit(limit, metadata=house.service)).balance.version
    take = ledger_pb2.AdjustCreditsRequest(
        user_id=user_id, amount=-14, reason="why", idempotency_key="other"
    )
    taken = await ledger(house).AdjustCredits(take, metadata=house.service)
    assert (taken.balance.available, taken.HasField("grant")) == (-4, False)
    assert await ledger_faults(owner) == []


@pytest.mark.parametrize(
    "changed",
    [{"amount": 0}, {"reason": ""}, {"idempotency_key": ""}, {"amount": 10**9 + 1}],
)
async def test_the_contract_has_the_rules(house: House, changed: dict[str, Any]) -> None:
    """Amounts, reasons and keys out of bounds are INVALID_REQUEST."""
    person = await house.person()
    fields = {"user_id": person.user_id, "amount": 1, **KEY, **changed}
    request = ledger_pb2.AdjustCreditsRequest(**fields)
    call = ledger(house).AdjustCredits(request, metadata=house.service)
    assert await answers_with(call, INVALID)
    nothing = ledger_pb2.CorrectUsageRequest(user_id=person.user_id, credits=1, **KEY)
    untargeted = ledger(house).CorrectUsage(nothing, metadata=house.service)
    assert await answers_with(untargeted, INVALID)


async def test_a_ledger_is_verified_for_one_or_for_all(house: House, owner: Connection) -> None:
    """One account, or pages of all; a fault names account, check and both numbers."""
    people = [await house.person(credits=10) for _ in range(3)]
    token, seen = "", 0
    while True:
        request = ledger_pb2.VerifyLedgerRequest(from_start=True, page_size=2, page_token=token)
        page = await ledger(house).VerifyLedger(request, metadata=house.service)
        assert not page.faults
        seen, token = seen + page.verified_accounts, page.next_page_token
        if not token:
            break
    assert seen == len(people)
    await owner.execute("UPDATE credit_grants SET remaining = 9")
    request = ledger_pb2.VerifyLedgerRequest(user_id=people[0].user_id)
    (grants, draws) = (await ledger(house).VerifyLedger(request, metadata=house.service)).faults
    assert (grants.user_id, grants.expected, grants.found) == (people[0].user_id, 10, 9)
    assert (grants.check, draws.check) == (
        ledger_pb2.LEDGER_CHECK_GRANTS,
        ledger_pb2.LEDGER_CHECK_DRAWS,
    )
