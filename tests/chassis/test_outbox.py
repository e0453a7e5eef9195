"""chassis.outbox on the real tables of a room."""

import asyncio
import contextlib
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from chassis import outbox
from chassis.errors import NotFound
from chassis.outbox import LEASE, MAX_ATTEMPTS, MAX_BACKOFF_SECONDS, Event, Relay, backoff_seconds
from chassis.postgres import Database
from chassis.refusals import PeerUnavailable
from tests.chassis.waiting import until
from tests.fakes import FakeClock

ROOM = "auth"


class ThingMissing(NotFound):
    """There is no such thing."""

    reason = "THING_MISSING"


class Consumer:
    """A room that takes events, as long as it is `up`."""

    def __init__(self) -> None:
        self.taken: list[UUID] = []
        self.calls = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def take(self, event: Event) -> None:
        self.calls += 1
        self.entered.set()
        await self.gate.wait()
        if self.error:
            raise self.error
        self.taken.append(event.id)


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


def relay_of(database: Database, consumer: Consumer, clock: FakeClock) -> Relay:
    return Relay(ROOM, database, {"usage": consumer.take}, clock)


async def announce(database: Database, clock: FakeClock, *consumers: str, number: int = 1) -> UUID:
    """Enqueues an event in a transaction of its own."""
    async with database.transaction() as conn:
        return await outbox.enqueue(
            conn, ROOM, "thing_made", {"n": number}, consumers or ["usage"], now=clock.now()
        )


async def delivery(database: Database, event_id: UUID, consumer: str = "usage") -> dict[str, Any]:
    async with database.connection() as conn:
        row = await conn.fetchrow(
            "SELECT state, attempts, last_error, next_attempt_at FROM auth_deliveries"
            " WHERE event_id = $1 AND consumer = $2",
            event_id,
            consumer,
        )
    return dict(row)


async def test_an_event_is_delivered_once(
    auth_database: Database, clock: FakeClock, consumer: Consumer
) -> None:
    """A delivery that succeeded is done and never made again."""
    event_id = await announce(auth_database, clock)
    relay = relay_of(auth_database, consumer, clock)
    assert await relay.deliver_due() == 1
    clock.advance(days=1)
    assert await relay.deliver_due() == 0
    assert consumer.taken == [event_id]
    assert (await delivery(auth_database, event_id))["state"] == "done"


async def test_the_consumer_reads_what_was_written(
    auth_database: Database, clock: FakeClock
) -> None:
    """Id, topic and payload arrive as they were enqueued, at each consumer named."""
    seen: dict[str, Event] = {}

    async def first(event: Event) -> None:
        seen["first"] = event

    async def second(event: Event) -> None:
        seen["second"] = event

    event_id = await announce(auth_database, clock, "first", "second", number=7)
    relay = Relay(ROOM, auth_database, {"first": first, "second": second}, clock)
    assert await relay.deliver_due() == 2
    assert seen["first"] == seen["second"] == Event(event_id, "thing_made", {"n": 7})


async def test_a_rollback_announces_nothing(
    auth_database: Database, clock: FakeClock, consumer: Consumer
) -> None:
    """An event exists if and only if its transaction committed."""

    async def use_case() -> None:
        async with auth_database.transaction() as conn:
            await outbox.enqueue(conn, ROOM, "thing_made", {}, ["usage"], now=clock.now())
            raise ThingMissing

    with pytest.raises(ThingMissing):
        await use_case()
    assert await relay_of(auth_database, consumer, clock).deliver_due() == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [(PeerUnavailable(), "PEER_UNAVAILABLE"), (ZeroDivisionError("a defect"), "ZeroDivisionError")],
    ids=["refusal", "defect"],
)
async def test_a_refused_delivery_is_put_off(
    auth_database: Database, clock: FakeClock, consumer: Consumer, error: Exception, said: str
) -> None:
    """A consumer that refuses, or fails, is asked again later and told nothing twice meanwhile."""
    consumer.error = error
    event_id = await announce(auth_database, clock)
    relay = relay_of(auth_database, consumer, clock)
    await relay.deliver_due()
    row = await delivery(auth_database, event_id)
    assert (row["state"], row["attempts"], row["last_error"]) == ("due", 1, said)
    assert row["next_attempt_at"] > clock.now()
    assert await relay.deliver_due() == 0
    consumer.error = None
    clock.advance(seconds=1)
    assert await relay.deliver_due() == 1
    assert consumer.taken == [event_id]


async def test_one_consumer_s_trouble_is_not_the_others(
    auth_database: Database, clock: FakeClock, consumer: Consumer
) -> None:
    """Of two consumers the one that answers is done, the other one and an unknown one are due."""
    failing = Consumer()
    failing.error = PeerUnavailable()
    event_id = await announce(auth_database, clock, "usage", "failing", "nobody")
    relay = Relay(ROOM, auth_database, {"usage": consumer.take, "failing": failing.take}, clock)
    await relay.deliver_due()
    states = {
        name: (await delivery(auth_database, event_id, name))["state"]
        for name in ("usage", "failing", "nobody")
    }
    assert states == {"usage": "done", "failing": "due", "nobody": "due"}


async def test_twenty_failures_are_the_end(
    auth_database: Database, clock: FakeClock, consumer: Consumer
) -> None:
    """After 20 attempts a delivery is dead: kept, counted, and tried again only when revived."""
    consumer.error = ThingMissing()
    event_id = await announce(auth_database, clock)
    relay = relay_of(auth_database, consumer, clock)
    dead = outbox.DEAD.labels(ROOM, "usage")
    before = dead._value.get()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert (await delivery(auth_database, event_id))["state"] == "due"
        assert await relay.deliver_due() == 1, f"attempt {attempt}"
        clock.advance(seconds=MAX_BACKOFF_SECONDS * 1.2)
    row = await delivery(auth_database, event_id)
    assert (row["state"], row["attempts"]) == ("dead", 20)
    assert row["last_error"] == "THING_MISSING"
    assert dead._value.get() == before + 1
    consumer.error = None
    clock.advance(days=1)
    assert await relay.deliver_due() == 0
    assert consumer.taken == []
    async with auth_database.transaction() as conn:
        assert await outbox.revive(conn, ROOM) == 1
    clock.advance(days=1)
    assert await relay.deliver_due() == 1
    assert consumer.taken == [event_id]


def test_the_wait_doubles_up_to_its_bound() -> None:
    """The wait starts at half a second, doubles, ends at five minutes; jitter is a fifth."""
    for attempts in range(1, MAX_ATTEMPTS + 1):
        middle = min(0.5 * 2 ** (attempts - 1), MAX_BACKOFF_SECONDS)
        waits = [backoff_seconds(attempts) for _ in range(50)]
        assert all(0.8 * middle <= wait <= 1.2 * middle for wait in waits)
        assert len(set(waits)) > 1


async def test_two_relays_never_deliver_one_event_twice(
    auth_database: Database, clock: FakeClock, consumer: Consumer
) -> None:
    """Whatever number of relays look at once, each due delivery is claimed by one of them."""
    events = [await announce(auth_database, clock, number=number) for number in range(60)]
    relays = [relay_of(auth_database, consumer, clock) for _ in range(4)]
    claimed = await asyncio.gather(*(relay.deliver_due() for relay in relays))
    assert sum(claimed) == len(events)
    assert sorted(consumer.taken) == sorted(events)


async def test_a_lease_keeps_others_away_and_runs_out(
    auth_database: Database, clock: FakeClock, consumer: Consumer
) -> None:
    """While a relay's lease runs nobody else delivers; when it is over somebody does."""
    event_id = await announce(auth_database, clock)
    consumer.gate.clear()
    stuck = asyncio.create_task(relay_of(auth_database, consumer, clock).deliver_due())
    await consumer.entered.wait()
    healthy = Consumer()
    other = relay_of(auth_database, healthy, clock)
    clock.advance(seconds=LEASE.total_seconds() - 1)
    assert await other.deliver_due() == 0
    clock.advance(seconds=1)
    assert await other.deliver_due() == 1
    assert healthy.taken == [event_id]
    stuck.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stuck
    assert (await delivery(auth_database, event_id))["state"] == "done"


@pytest.mark.parametrize("late", [None, PeerUnavailable()], ids=["success", "failure"])
async def test_a_late_relay_is_fenced(
    auth_database: Database, clock: FakeClock, consumer: Consumer, late: Exception | None
) -> None:
    """A relay whose lease ran out before its consumer answered changes nothing any more."""
    event_id = await announce(auth_database, clock)
    consumer.gate.clear()
    consumer.error = late
    slow = asyncio.create_task(relay_of(auth_database, consumer, clock).deliver_due())
    await consumer.entered.wait()
    clock.advance(seconds=LEASE.total_seconds())
    failing = Consumer()
    failing.error = ThingMissing()
    assert await relay_of(auth_database, failing, clock).deliver_due() == 1
    second = await delivery(auth_database, event_id)
    consumer.gate.set()
    await slow
    assert await delivery(auth_database, event_id) == second
    assert (second["state"], second["attempts"]) == ("due", 2)


async def test_a_woken_relay_delivers_until_cancelled(
    auth_database: Database,
    clock: FakeClock,
    consumer: Consumer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A running relay looks at its start and whenever it is woken."""
    monkeypatch.setattr(outbox, "POLL_SECONDS", 3600.0)
    first = await announce(auth_database, clock)
    relay = relay_of(auth_database, consumer, clock)
    task = asyncio.create_task(relay.run())
    await until(lambda: consumer.taken == [first])
    second = await announce(auth_database, clock)
    relay.wake()
    await until(lambda: consumer.taken == [first, second])
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_more_than_a_batch_is_delivered_without_a_pause(
    auth_database: Database,
    clock: FakeClock,
    consumer: Consumer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full batch is followed by the next one at once."""
    monkeypatch.setattr(outbox, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(outbox, "BATCH", 3)
    events = [await announce(auth_database, clock, number=number) for number in range(8)]
    task = asyncio.create_task(relay_of(auth_database, consumer, clock).run())
    await until(lambda: len(consumer.taken) == len(events))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_the_lease_is_longer_than_a_call() -> None:
    """A consumer's call ends before its lease does: channels give calls ten seconds."""
    assert timedelta(seconds=10) < LEASE
