"""
Reservations against a model: held, used up, given back, late or twice, in any order.

The service runs on real PostgreSQL, its grants begin, expire and are voided meanwhile.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from hypothesis.stateful import run_state_machine_as_test as run_machine

from chassis import ids
from chassis.errors import Refusal
from chassis.ids import uuid7
from chassis.postgres import Connection, Database, open_database
from services.usage.domain.accounts import Balance, Kind
from services.usage.domain.holds import State
from services.usage.domain.metering import Event
from services.usage.domain.requests import Commit, Extend, Overage, Release, Request, Reserve
from services.usage.service.room import lock_book
from services.usage.service.use_cases import UseCases
from services.usage.store import accounts
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
FEW, MANY, STEPS = 25, 400, 40
TICK = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
JUMPS = [timedelta(), TICK, MINUTE - TICK, MINUTE, 2 * MINUTE, 5 * MINUTE]
HOLDS = st.tuples(
    st.integers(1, 12) | st.integers(1, 60), st.sampled_from([MINUTE, 3 * MINUTE, 10 * MINUTE])
)
RESOLVED = {
    State.COMMITTED: "RESERVATION_COMMITTED",
    State.RELEASED: "RESERVATION_RELEASED",
    State.EXPIRED: "RESERVATION_EXPIRED",
}
Standing = tuple[int, int, int, int, int, dict[UUID, int]]


@dataclass(eq=False)
class Model:
    """What a reservation must be."""

    asked: Reserve
    expires: datetime
    state: State = State.OPEN
    answered: list[tuple[Request, Any]] = field(default_factory=list)
    """What was asked and done, with the answers."""

    def at(self, now: datetime) -> State:
        if self.state is State.OPEN and self.expires <= now:
            self.state = State.EXPIRED
        return self.state


@dataclass
class Bench:
    """The room under test, and the loop it runs on."""

    runner: asyncio.Runner
    usage: UseCases
    database: Database
    owner: Connection
    clock: FakeClock

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)


class Holding(RuleBasedStateMachine):
    """One account, and everything that may happen to it."""

    models = Bundle[Model]("models")

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.all: list[Model] = []
        self.grants = 0
        self.closed = False

    @initialize(
        target=models,
        credits=st.integers(20, 60),
        overdraft=st.sampled_from([0, 0, 15]),
        first=st.lists(HOLDS, min_size=2, max_size=4),
    )
    def open(self, credits: int, overdraft: int, first: list[tuple[int, timedelta]]) -> Any:
        """Hypothesis switches rules off by turns: an example without a hold would say little."""
        owner = self.bench.owner
        self.user_id = self.bench.run(make_account(owner, self.bench.clock, credits=credits))
        limit = "UPDATE credit_accounts SET overdraft_limit = $2 WHERE user_id = $1"
        self.bench.run(owner.execute(limit, self.user_id, overdraft))
        self.bench.run(self.granted(20, None, 2 * MINUTE, 10))
        return multiple(*(model for hold in first if (model := self.reserved(*hold))))

    @rule(target=models, holds=st.lists(HOLDS, min_size=1, max_size=3))
    def reserve(self, holds: list[tuple[int, timedelta]]) -> Any:
        return multiple(*(model for hold in holds if (model := self.reserved(*hold))))

    @rule(
        model=models,
        tenths=st.sampled_from([0, 3, 7, 10, 10, 13, 30]),
        overage=st.sampled_from(Overage),
    )
    def commit(self, model: Model, tenths: int, overage: Overage) -> None:
        used = model.asked.credits * tenths // 10
        expected = self.ended(model) or self.overage(model, used, overage)
        if self.ask(model, Commit(model.asked.id, used, overage, "")) == "":
            assert expected == "" or self.repeats(model)
            model.state = State.COMMITTED
        else:
            assert expected

    @rule(model=models)
    def release(self, model: Model) -> None:
        expected = self.ended(model)
        reason = self.ask(model, Release(model.asked.id))
        assert reason == ("" if expected == "RESERVATION_RELEASED" else expected)
        if not expected:
            model.state = State.RELEASED

    @rule(model=models, ttl=st.sampled_from([MINUTE, timedelta(hours=1)]))
    def extend(self, model: Model, ttl: timedelta) -> None:
        expected = self.ended(model)
        assert self.ask(model, Extend(model.asked.id, ttl), once=False) == expected
        if not expected:
            model.expires = max(model.expires, self.now + ttl)

    @rule(
        amount=st.integers(1, 40),
        begins=st.sampled_from([None, MINUTE, 3 * MINUTE]),
        lasts=st.sampled_from([MINUTE, 2 * MINUTE, 8 * MINUTE, None]),
        priority=st.sampled_from([10, 50]),
    )
    def grant(
        self, amount: int, begins: timedelta | None, lasts: timedelta | None, priority: int
    ) -> None:
        self.bench.run(self.granted(amount, begins, lasts, priority))

    @rule(cost=st.integers(0, 10))
    def record(self, cost: int) -> None:
        self.bench.run(self.recorded(make_event(self.user_id, self.now, credits=cost)))

    @rule(which=st.integers(0, 8))
    def void(self, which: int) -> None:
        self.bench.run(self.void_one(which))

    @precondition(lambda self: len(self.all) > 3)
    @rule(really=st.sampled_from([False, False, True]))
    def close(self, really: bool) -> None:
        if really:
            self.bench.run(self.bench.usage.accounts.erase_user(self.user_id))
            self.closed = True

    @rule(first=st.sampled_from(JUMPS), then=st.sampled_from(JUMPS), look=st.booleans())
    def wait(self, first: timedelta, then: timedelta, look: bool) -> None:
        """Whether somebody looks in between changes nothing."""
        expected = self.bench.run(self.standing(self.now + first + then))
        self.bench.clock.advance(seconds=first.total_seconds())
        if look:
            self.bench.run(self.bench.usage.standings.mature_due())
        self.bench.clock.advance(seconds=then.total_seconds())
        assert self.bench.run(self.standing(self.now)) == expected

    @rule(model=models)
    def ask_again(self, model: Model) -> None:
        """What was done is answered as it was then."""
        for request, answer in model.answered:
            assert self.bench.run(self.bench.usage.reservations.ask(request)) == answer

    @invariant()
    def the_ledger_adds_up(self) -> None:
        assert self.bench.run(ledger_faults(self.bench.owner)) == []

    @invariant()
    def the_states_are_the_model_s(self) -> None:
        get = self.bench.usage.reservations.get
        for model in self.all[-3:]:
            hold = self.bench.run(get(self.user_id, model.asked.id))
            assert (hold.state, hold.expires_at) == (model.at(self.now), model.expires)
        assert self.balance().reserved == self.held()

    def reserved(self, amount: int, ttl: timedelta) -> Model | None:
        asked = Reserve(uuid7(self.now), self.user_id, amount, ttl, "write")
        model = Model(asked, self.now + ttl)
        expected = "NO_CREDITS" if amount > self.balance().available else ""
        assert self.ask(model, asked) == ("ACCOUNT_CLOSED" if self.closed else expected)
        if not model.answered:
            return None
        self.all.append(model)
        return model

    def held(self) -> int:
        return sum(m.asked.credits for m in self.all if m.at(self.now) is State.OPEN)

    @property
    def now(self) -> datetime:
        return self.bench.clock.now()

    def balance(self) -> Balance:
        return self.bench.run(self.bench.usage.accounts.get_balance(self.user_id))

    def ended(self, model: Model) -> str:
        """Returns the reason for which a model cannot be resolved any more."""
        return RESOLVED.get(model.at(self.now), "")

    def overage(self, model: Model, used: int, overage: Overage) -> str:
        more = used - model.asked.credits
        if more <= 0:
            return ""
        if overage is Overage.REFUSE:
            return "RESERVATION_EXCEEDED"
        if self.closed:
            return "ACCOUNT_CLOSED"
        found = self.balance()
        overdraft = found.overdraft_limit if overage is Overage.OVERDRAFT else 0
        return "NO_CREDITS" if more > found.available + overdraft else ""

    def repeats(self, model: Model) -> bool:
        """Tells whether the last request is one that was done before."""
        request, answer = model.answered.pop()
        return any(
            isinstance(request, Commit) and isinstance(first, Commit) and was == answer
            for first, was in model.answered
        )

    def ask(self, model: Model, request: Request, *, once: bool = True) -> str:
        """Returns the reason a request is refused for; keeps it if it was done."""
        try:
            answer = self.bench.run(self.bench.usage.reservations.ask(request))
        except Refusal as refusal:
            return refusal.reason
        if once:
            model.answered.append((request, answer))
        return ""

    async def recorded(self, event: Event) -> None:
        await self.bench.usage.metering.record([event])

    async def granted(
        self, amount: int, begins: timedelta | None, lasts: timedelta | None, priority: int
    ) -> None:
        self.grants += 1
        start = self.now + (begins or timedelta())
        terms = make_terms(
            source_ref=str(self.grants),
            amount=amount,
            priority=priority,
            effective_at=start if begins else None,
            expires_at=start + lasts if lasts else None,
        )
        with contextlib.suppress(Refusal):
            await self.bench.usage.accounts.grant(self.user_id, terms)

    async def void_one(self, which: int) -> None:
        async with self.bench.database.transaction() as conn:
            book = await lock_book(conn, self.user_id, self.now)
            if which < len(book.grants):
                book.retire(book.grants[which], Kind.VOID, self.now)
            await accounts.write_books(conn, [book], self.now)

    async def standing(self, at: datetime) -> Standing:
        """Returns the account as whoever looks at that time finds it, without writing it."""
        async with self.bench.database.transaction() as conn:
            book = await lock_book(conn, self.user_id, at)
            left = {grant.id: grant.remaining for grant in book.grants if grant.remaining}
        return book.granted, book.used, book.reserved, book.debt, book.version, left


@contextlib.asynccontextmanager
async def open_bench(runner: asyncio.Runner, database_url: str, clock: FakeClock) -> Any:
    async with (
        open_database(database_url, role="finity_usage", application="test") as database,
        open_usage(database, clock) as usage,
        connect_owner(database_url) as owner,
    ):
        yield Bench(runner, usage, database, owner, clock)


def made_bench(database_url: str, clock: FakeClock) -> Iterator[Bench]:
    made = itertools.count()
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        # Grants that are alike burn in the order of their ids: without chance in these the same
        # steps have the same end, which Hypothesis insists on.
        patch.setattr(ids, "_with_random", lambda floor, _: ids._make(floor | next(made)))
        opened = open_bench(runner, database_url, clock)
        yield runner.run(opened.__aenter__())
        runner.run(opened.__aexit__(None, None, None))


def obey(machine: Callable[[], RuleBasedStateMachine], examples: int) -> None:
    """Runs so many examples of a machine."""
    run_machine(
        machine,  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


bench = pytest.fixture(made_bench)


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.soak)])
def test_reservations_obey_the_model(bench: Bench, examples: int) -> None:
    """Each hold has one end, each credit is somewhere, whoever looks and whenever."""
    obey(lambda: Holding(bench), examples)
