"""A month's credits run out: told once a share, by the flush that spends them."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from finity.usage.v1 import usage_pb2
from hypothesis import given
from hypothesis import strategies as st

from chassis.postgres import Connection, Database
from services.usage.domain.metering import Outcome
from services.usage.domain.thresholds import bounds, highest, month_of
from services.usage.service import thresholds as module
from services.usage.service.thresholds import USAGE_THRESHOLD
from services.usage.service.use_cases import UseCases
from services.usage.store import metering as calls
from services.usage.store import thresholds as store
from tests.contracts.test_schema import Recorder, analyse
from tests.factories import (
    at_once,
    connect_owner,
    eventually,
    ledger_faults,
    make_account,
    make_event,
    make_terms,
    make_user,
    open_usage,
)
from tests.fakes import FakeClock
from tests.mailbox import templates
from tests.running import House

SHARES = (80, 100)
amounts = st.integers(0, 10**6)


@given(told=st.sampled_from([0, 80, 100]), used=amounts, left=amounts, earlier=amounts)
def test_a_share_is_reached_exactly(told: int, used: int, left: int, earlier: int) -> None:
    """It is the highest of used / (used + left) that was not told; a lifetime reaches no less."""
    expected = [p for p in SHARES if p > told and used > 0 and used / (used + left) >= p / 100]
    assert highest(SHARES, told, used, left) == max(expected, default=0)
    assert highest(SHARES, told, used + earlier, left) >= highest(SHARES, told, used, left)


def test_a_month_is_utc_s() -> None:
    moment = datetime(2026, 12, 31, 23, 30, tzinfo=UTC)
    assert month_of(moment) == date(2026, 12, 1)
    first, following = bounds(month_of(moment))
    assert first == datetime(2026, 12, 1, tzinfo=UTC)
    assert following == datetime(2027, 1, 1, tzinfo=UTC)


async def told(owner: Connection, user_id: UUID) -> list[int]:
    """Returns the shares a user is told of, the lowest first."""
    rows = await owner.fetch(
        "SELECT (payload->>'percent')::int AS percent FROM usage_outbox"
        " WHERE payload->>'user_id' = $1 ORDER BY 1",
        str(user_id),
    )
    return [row["percent"] for row in rows]


async def spend(usage: UseCases, user_id: UUID, at: datetime, amount: int) -> None:
    while True:
        (result,) = await usage.metering.record([make_event(user_id, at, credits=amount)])
        if result.outcome is not Outcome.ACCOUNT_BUSY:
            assert result.outcome is Outcome.ACCEPTED
            return


async def test_each_share_is_told_once(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Not before it is reached, not again after a grant, and anew in the next month."""
    user_id = await make_account(owner, clock, credits=100)
    async with open_usage(usage_database, clock, thresholds=SHARES) as usage:
        for amount, expected in ((79, []), (1, [80]), (10, [80]), (10, [80, 100])):
            await spend(usage, user_id, clock.now(), amount)
            assert await told(owner, user_id) == expected
        event: Any = await owner.fetchrow(
            "SELECT topic, payload::text, consumer, state FROM usage_outbox"
            " JOIN usage_deliveries ON event_id = id ORDER BY payload->'percent' DESC"
        )
        assert (event["topic"], event["consumer"]) == (USAGE_THRESHOLD, "auth")
        month = f"{month_of(clock.now()):%Y-%m}"
        assert f'"month": "{month}"' in event["payload"]
        assert '"used": 100' in event["payload"]
        await usage.accounts.grant(user_id, make_terms(source_ref="more", amount=100))
        await spend(usage, user_id, clock.now(), 100)
        assert await told(owner, user_id) == [80, 100]
        await usage.accounts.grant(user_id, make_terms(source_ref="next", amount=10))
        clock.advance(days=32)
        await spend(usage, user_id, clock.now(), 7)
        assert await told(owner, user_id) == [80, 100]
        await spend(usage, user_id, clock.now(), 3)
        assert await told(owner, user_id) == [80, 100, 100]
    assert await ledger_faults(owner) == []


async def test_a_share_lower_than_one_told_is_not_news(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """What jumps past both is told of the higher; another process adds none of the lower."""
    user_id = await make_account(owner, clock, credits=100)
    async with (
        open_usage(usage_database, clock, thresholds=SHARES) as one,
        open_usage(usage_database, clock, thresholds=SHARES) as other,
    ):
        await spend(one, user_id, clock.now(), 70)
        await spend(other, user_id, clock.now(), 10)
        assert await told(owner, user_id) == [80]
        await spend(one, user_id, clock.now(), 20)
        await one.accounts.grant(user_id, make_terms(source_ref="more", amount=20))
        await spend(other, user_id, clock.now(), 1)
        assert await told(owner, user_id) == [80, 100]


async def test_last_month_s_calls_are_not_this_one_s(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """An account that ever spent much is told by what it spends in the month alone."""
    user_id = await make_account(owner, clock, credits=1000)
    async with open_usage(usage_database, clock, thresholds=SHARES) as usage:
        await spend(usage, user_id, clock.now(), 700)
        clock.advance(days=32)
        await spend(usage, user_id, clock.now() - timedelta(days=32), 100)
        for amount, expected in ((100, []), (50, []), (10, [80])):
            await spend(usage, user_id, clock.now(), amount)
            assert await told(owner, user_id) == expected


async def race(database: Database, owner: Connection, clock: FakeClock) -> tuple[UUID, list[int]]:
    """50 callers in two processes spend the last fifth of an account, credit by credit."""
    user_id = await make_account(owner, clock, credits=100)
    async with (
        open_usage(database, clock, thresholds=SHARES) as one,
        open_usage(database, clock, thresholds=SHARES) as other,
    ):
        await spend(one, user_id, clock.now(), 50)
        await at_once(50, lambda n: spend((one, other)[n % 2], user_id, clock.now(), 1))
    assert await ledger_faults(owner) == []
    return user_id, await told(owner, user_id)


async def test_a_share_is_told_once_however_many_reach_it(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Whichever flush of whichever process crosses it, one event is written."""
    _, found = await race(usage_database, owner, clock)
    assert found in ([80, 100], [100])


async def test_without_the_guard_it_is_told_twice(
    usage_database: Database, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: it is the row of usage_thresholds that makes it once."""

    async def always(*_: Any) -> bool:
        return True

    monkeypatch.setattr(store, "insert_crossing", always)
    user_id = await make_account(owner, clock, credits=100)
    async with (
        open_usage(usage_database, clock, thresholds=SHARES) as one,
        open_usage(usage_database, clock, thresholds=SHARES) as other,
    ):
        await spend(one, user_id, clock.now(), 85)
        await spend(other, user_id, clock.now(), 1)
    assert await told(owner, user_id) == [80, 80]


async def test_the_hot_path_asks_nothing(
    usage_database: Database, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No query while no share can be reached, one a month when one may, none once it was told."""
    asked: list[str] = []
    for name in ("spent_in", "insert_crossing"):
        monkeypatch.setattr(store, name, _counting(asked, name))
    user_id = await make_account(owner, clock, credits=100)
    async with open_usage(usage_database, clock, thresholds=SHARES) as usage:
        for _ in range(10):
            await spend(usage, user_id, clock.now(), 7)
        assert asked == []
        for _ in range(5):
            await spend(usage, user_id, clock.now(), 4)
        assert asked == ["spent_in", "insert_crossing"]
        clock.advance(days=32)
        for _ in range(5):
            await spend(usage, user_id, clock.now(), 1)
        assert asked == ["spent_in", "insert_crossing", "spent_in"]


def _counting(asked: list[str], name: str) -> Any:
    real = getattr(store, name)

    async def call(*args: Any) -> Any:
        asked.append(name)
        return await real(*args)

    return call


async def test_what_is_forgotten_is_asked_again(
    usage_database: Database, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that remembers one account tells of many, once each."""
    monkeypatch.setattr(module, "MOST_KNOWN", 1)
    users = [await make_account(owner, clock, credits=10) for _ in range(5)]
    async with open_usage(usage_database, clock, thresholds=SHARES) as usage:
        for amount in (8, 1, 1):
            events = [make_event(user_id, clock.now(), credits=amount) for user_id in users]
            await usage.metering.record(events)
    for user_id in users:
        assert await told(owner, user_id) == [80, 100]


async def test_a_flush_that_fails_tells_nothing_and_is_told_later(
    usage_database: Database, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is part of the flush's transaction, and what was rolled back is not remembered."""
    user_id = await make_account(owner, clock, credits=10)
    async with open_usage(usage_database, clock, thresholds=SHARES) as usage:
        real = usage.metering._thresholds.enqueue

        async def breaking(*args: Any) -> Any:
            await real(*args)
            raise RuntimeError

        monkeypatch.setattr(usage.metering._thresholds, "enqueue", breaking)
        with pytest.raises(RuntimeError):
            await spend(usage, user_id, clock.now(), 9)
        monkeypatch.undo()
        assert await told(owner, user_id) == []
        await spend(usage, user_id, clock.now(), 9)
        assert await told(owner, user_id) == [80]


async def test_the_month_is_read_by_an_index(
    usage_database: Database, auth_database: Database, server_url: str, clock: FakeClock
) -> None:
    """Asking what a month has spent reads no table from end to end."""
    now = clock.now()
    async with auth_database.transaction() as conn:
        users = [(await make_user(conn, clock)).id for _ in range(20)]
    events = [make_event(users[n % 20], now - timedelta(minutes=n), credits=0) for n in range(3000)]
    async with usage_database.transaction() as conn:
        await calls.make_partitions(conn, events[-1].time, now)
        await calls.write_events(conn, events, {})
    await analyse(server_url, usage_database)
    async with usage_database.connection() as conn:
        recorder = Recorder(conn)
        await store.spent_in(recorder, users[:2], month_of(now))
        assert recorder.scans
        assert await recorder.sequential() == []


async def test_the_user_gets_a_mail(house: House) -> None:
    """From the call that spends the credits to auth's outbox, once, for a verified address."""
    person = await house.person(credits=10)
    unverified = await house.person(credits=10, verified=False)
    async with connect_owner(house.database_url) as owner:
        for each in (person, unverified):
            event = make_event(UUID(each.user_id), FakeClock().now(), credits=10)
            request = usage_pb2.RecordUsageRequest(
                event=usage_pb2.UsageEvent(
                    event_id=str(event.id), user_id=each.user_id, tool_name="a", credits=10
                )
            )
            await house.usage.RecordUsage(request, metadata=house.service)
        done = "SELECT count(*) = 2 FROM usage_deliveries WHERE state = 'done'"
        await eventually(lambda: owner.fetchval(done))
        assert (await templates(owner, person.email)).count(USAGE_THRESHOLD) == 1
        assert USAGE_THRESHOLD not in await templates(owner, unverified.email)
