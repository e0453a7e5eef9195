"""
Generative: whatever happens to accounts, in whatever order, they add up at every step.

Two accounts get the same calls. One is looked at after every step, the other only when
a call needs it: what begins and expires between is written by one run or by many, and
both must come to the same.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chassis.errors import Refusal
from chassis.ids import uuid7
from chassis.postgres import Connection, open_database
from services.usage.domain.book import Book
from services.usage.domain.requests import Commit, Overage, Reserve
from services.usage.service.ledger import Act
from services.usage.service.use_cases import UseCases
from tests.factories import (
    connect_owner,
    ledger_faults,
    make_account,
    make_event,
    make_terms,
    open_usage,
)
from tests.fakes import FakeClock

T = TypeVar("T")
ACT = Act("service:test", "model")
HOUR = timedelta(hours=1)
amounts = st.integers(1, 12)
# Hours from now; few, so that begins and ends meet.
begins = st.sampled_from([None, None, 1, 2, 4])
ends = st.sampled_from([None, 1, 2, 3, 5])


@dataclass
class Bench:
    """The room under test, and the loop it runs on."""

    runner: asyncio.Runner
    usage: UseCases
    owner: Connection
    clock: FakeClock
    rules: int = 0
    """How many have run."""

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)


@dataclass
class Twin:
    """One of the two accounts, and its ids of what both have."""

    user_id: UUID
    grants: list[UUID] = field(default_factory=list)
    events: list[UUID] = field(default_factory=list)
    holds: list[UUID] = field(default_factory=list)


class Ledgers(RuleBasedStateMachine):
    """Grants, calls, holds, voids, adjustments, corrections and time, as they come."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.watched: Twin
        self.left: Twin

    @initialize(overdraft=st.sampled_from([0, 0, 10]))
    def open(self, overdraft: int) -> None:
        owner, clock = self.bench.owner, self.bench.clock
        self.watched, self.left = (
            Twin(self.bench.run(make_account(owner, clock))) for _ in range(2)
        )
        if overdraft:
            ledger = self.bench.usage.ledger
            for twin in (self.watched, self.left):
                self.bench.run(ledger.set_overdraft_limit(twin.user_id, overdraft, ACT))

    @rule(amount=amounts, priority=st.sampled_from([10, 50]), begin=begins, end=ends)
    def grant(self, amount: int, priority: int, begin: int | None, end: int | None) -> None:
        # Grants of one moment burn in the order of their ids, which the twins do not share.
        self.bench.clock.advance(milliseconds=1)
        now = self.bench.clock.now()
        terms = make_terms(
            source_ref=str(len(self.watched.grants)),
            amount=amount,
            priority=priority,
            effective_at=now + begin * HOUR if begin else None,
            expires_at=now + end * HOUR if end else None,
        )

        async def give(twin: Twin) -> None:
            made, _ = await self.bench.usage.accounts.grant(twin.user_id, terms)
            twin.grants.append(made.id)

        self.both(give)

    @rule(costs=st.lists(st.integers(0, 8), min_size=1, max_size=3))
    def use(self, costs: list[int]) -> None:
        self.bench.clock.advance(milliseconds=1)

        async def record(twin: Twin) -> list[str]:
            now = self.bench.clock.now()
            events = [make_event(twin.user_id, now, credits=cost) for cost in costs]
            # In the order of their ids, so that the twins' calls are corrected alike.
            events.sort(key=lambda event: event.id)
            events = [
                event._replace(credits=cost) for event, cost in zip(events, costs, strict=True)
            ]
            twin.events += [event.id for event in events]
            return [
                result.outcome.value for result in await self.bench.usage.metering.record(events)
            ]

        self.both(record)

    @rule(amount=amounts, hours=st.sampled_from([1, 3, 9]))
    def hold(self, amount: int, hours: int) -> None:
        self.bench.clock.advance(milliseconds=1)

        async def hold(twin: Twin) -> int:
            asked = Reserve(
                uuid7(self.bench.clock.now()), twin.user_id, amount, hours * HOUR, "write"
            )
            _, available = await self.bench.usage.reservations.ask(asked)
            twin.holds.append(asked.id)
            return available

        self.both(hold)

    @precondition(lambda self: self.watched.holds)
    @rule(data=st.data(), used=st.integers(0, 16))
    def commit(self, data: st.DataObject, used: int) -> None:
        """What it used is corrected like any other call."""
        self.bench.clock.advance(milliseconds=1)
        place = data.draw(st.integers(0, len(self.watched.holds) - 1))

        async def commit(twin: Twin) -> int:
            asked = Commit(twin.holds[place], used, Overage.OVERDRAFT, "")
            _, available = await self.bench.usage.reservations.ask(asked)
            twin.events.append(asked.id)
            return available

        self.both(commit)

    @precondition(lambda self: self.watched.grants)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.watched.grants) - 1))
        ledger = self.bench.usage.ledger

        async def void(twin: Twin) -> int:
            grant, _ = await ledger.void_grant(twin.user_id, twin.grants[place], ACT)
            return grant.remaining

        self.both(void)

    @rule(amount=amounts | st.integers(-12, -1))
    def adjust(self, amount: int) -> None:
        self.bench.clock.advance(milliseconds=1)

        async def adjust(twin: Twin) -> None:
            done = await self.bench.usage.ledger.adjust_credits(twin.user_id, amount, ACT)
            if done.grant:
                twin.grants.append(done.grant.id)

        self.both(adjust)

    @precondition(lambda self: self.watched.events)
    @rule(data=st.data(), amount=st.integers(1, 8), whole=st.booleans())
    def correct(self, data: st.DataObject, amount: int, whole: bool) -> None:
        self.bench.clock.advance(milliseconds=1)
        place = data.draw(st.integers(0, len(self.watched.events) - 1))
        paid_by = "SELECT entry_id FROM tool_usage WHERE id = $1"

        async def correct(twin: Twin) -> None:
            event_id = twin.events[place]
            target = {"event_id": event_id}
            if whole and (entry := await self.bench.owner.fetchval(paid_by, event_id)):
                target = {"entry_id": entry}
            done = await self.bench.usage.ledger.correct_usage(twin.user_id, amount, ACT, **target)
            if done.grant:
                twin.grants.append(done.grant.id)

        self.both(correct)

    @rule(hours=st.integers(1, 6))
    def wait(self, hours: int) -> None:
        """Time passes; the watched account is looked at every hour."""
        for _ in range(hours):
            self.bench.clock.advance(hours=1)
            self.look(self.watched)

    @rule()
    def look_at_both(self) -> None:
        watched, left = self.look(self.watched), self.look(self.left)
        assert watched == left
        assert self.bench.run(self.written(self.watched)) == self.bench.run(self.written(self.left))

    @invariant()
    def everything_adds_up(self) -> None:
        """No invariant is broken and the proofs agree, from the last one on and from the start."""
        self.bench.rules += 1
        self.look(self.watched)
        proofs = self.bench.usage.proofs
        assert self.bench.run(ledger_faults(self.bench.owner)) == []
        assert list(self.bench.run(proofs.verify_changed(None)).faults) == []
        for twin in (self.watched, self.left):
            assert list(self.bench.run(proofs.verify_account(twin.user_id)).faults) == []

    def teardown(self) -> None:
        """Nobody looked at the other account for a while: now it is as the watched one."""
        if hasattr(self, "left"):
            self.look_at_both()
            self.bench.run(forget(self.bench.owner))

    def both(self, call: Any) -> None:
        """Does the same to both accounts; both answer alike or are refused alike."""
        answers = [self.bench.run(answer(call(twin))) for twin in (self.watched, self.left)]
        assert answers[0] == answers[1]

    def look(self, twin: Twin) -> tuple[int, ...]:
        balance = self.bench.run(self.bench.usage.accounts.get_balance(twin.user_id))
        return balance.available, balance.granted, balance.used, balance.version

    async def written(self, twin: Twin) -> list[tuple[Any, ...]]:
        """Returns the account's entries, with the time of what happens by itself."""
        rows = await self.bench.owner.fetch(
            "SELECT kind, amount, balance_after, created_at, drawn FROM credit_entries"
            " WHERE user_id = $1 ORDER BY version",
            twin.user_id,
        )
        return [tuple(row) for row in rows]


async def answer(call: Coroutine[Any, Any, Any]) -> Any:
    """Awaits a call; returns its answer, or the reason it was refused for with its numbers."""
    try:
        return await call
    except Refusal as refusal:
        return refusal.reason, dict(refusal.metadata)


async def forget(owner: Connection) -> None:
    """Empties the ledger, for the next example looks at all of it."""
    await owner.execute("TRUNCATE credit_accounts, tool_usage CASCADE")
    await owner.execute("TRUNCATE usage_rollups, credit_entries, credit_grants CASCADE")


@contextlib.asynccontextmanager
async def open_bench(runner: asyncio.Runner, database_url: str, clock: FakeClock) -> Any:
    async with (
        open_database(database_url, role="finity_usage", application="test") as database,
        connect_owner(database_url) as owner,
        open_usage(database, clock) as usage,
    ):
        yield Bench(runner, usage, owner, clock)


@pytest.fixture
def bench(database_url: str, clock: FakeClock) -> Any:
    with asyncio.Runner() as runner:
        opened = open_bench(runner, database_url, clock)
        yield runner.run(opened.__aenter__())
        runner.run(opened.__aexit__(None, None, None))


def run_model(bench: Bench, examples: int, steps: int, **chosen: Any) -> None:
    run_state_machine_as_test(
        lambda: Ledgers(bench),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            database=None,
            suppress_health_check=list(HealthCheck),
            **chosen,
        ),
    )


def test_ledgers_add_up(bench: Bench) -> None:
    """Hundreds of steps over pairs of accounts: nothing drifts, looking changes nothing."""
    run_model(bench, 25, 20)
    assert bench.rules >= 200


@pytest.mark.soak
def test_ledgers_add_up_for_long(bench: Bench) -> None:
    """Thousands of them."""
    run_model(bench, 120, 40)
    assert bench.rules >= 2000


def test_a_careless_expiry_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: where what is due is written with the time of the look, the model fails."""
    mature = Book.mature

    def late(book: Book, now: datetime) -> None:
        seen = len(book.postings)
        mature(book, now)
        book.postings[seen:] = [each._replace(at=now) for each in book.postings[seen:]]

    monkeypatch.setattr(Book, "mature", late)
    with pytest.raises(AssertionError):
        run_model(
            bench, 25, 20, derandomize=True, report_multiple_bugs=False, phases=[Phase.generate]
        )
