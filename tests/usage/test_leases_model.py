"""
Leases against a model: taken, burned, settled, renewed and fenced, in any order.

Beside them reservations, grants and calls come and go as in the model of reservations.
"""

from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from chassis.errors import Refusal
from chassis.ids import uuid7
from services.usage.domain.holds import Hold, State
from services.usage.domain.requests import Lease, Renewal, Settle
from tests.factories import make_event
from tests.usage.test_reservations_model import (
    FEW,
    HOLDS,
    JUMPS,
    MANY,
    RESOLVED,
    Bench,
    Holding,
    T,
    made_bench,
    obey,
)

HOLDERS = ["gateway-1", "gateway-2"]


@dataclass(eq=False)
class Leased:
    """What a lease must be."""

    asked: Lease
    fence: int
    expires: datetime
    answer: tuple[Hold, int] | None
    """None if it was taken by a settlement."""
    state: State = State.OPEN
    settled: tuple[Settle, tuple[Hold, int, Hold | None]] | None = None
    """What settled it, with the answer."""

    def at(self, now: datetime) -> State:
        if self.state is State.OPEN and self.expires <= now:
            self.state = State.EXPIRED
        return self.state


# What holders do: take a lease, settle one of the last ones, let time pass.
TAKE = st.tuples(st.just("take"), st.sampled_from(HOLDERS), HOLDS)
SETTLE = st.tuples(
    st.just("settle"),
    st.integers(0, 3),
    st.lists(st.integers(0, 8), max_size=3),
    st.sampled_from([True, True, True, False]),
    st.none() | HOLDS,
)
PASS = st.tuples(st.just("let_pass"), st.sampled_from(JUMPS))


class Leasing(Holding):
    """One account, with holders that lease from it."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.leases: list[Leased] = []

    # Several at once: among all the rules of the base they would hardly ever meet.
    @rule(steps=st.lists(TAKE | SETTLE | SETTLE | PASS, min_size=3, max_size=9))
    def burn(self, steps: list[tuple[Any, ...]]) -> None:
        for what, *how in steps:
            getattr(self, what)(*how)
            self.fences_rise()

    @rule()
    def ask_all_again(self) -> None:
        """The same lease, and the same settlement, are answered as they were."""
        for lease in self.leases:
            if lease.answer:
                again = self.bench.run(self.bench.usage.reservations.ask(lease.asked))
                assert again == lease.answer
            if lease.settled:
                request, answer = lease.settled
                assert self.bench.run(self.bench.usage.reservations.settle(request)) == answer

    def take(self, holder: str, hold: tuple[int, timedelta]) -> None:
        asked = Lease(uuid7(self.now), self.user_id, *hold, holder)
        there = self.balance().available + self.coming_back(holder)
        expected = "NO_CREDITS" if asked.credits > there else ""
        reason, answer = self.answer(self.bench.usage.reservations.ask(asked))
        assert reason == ("ACCOUNT_CLOSED" if self.closed else expected)
        if answer is not None:
            if (earlier := self.last(holder)) and earlier.at(self.now) is State.OPEN:
                earlier.state = State.RELEASED
            self.taken(asked, answer[0].fence, answer)

    def settle(
        self, which: int, costs: list[int], right: bool, more: tuple[int, timedelta] | None
    ) -> None:
        if which >= len(self.leases):
            return
        lease = self.leases[-1 - which]
        calls = tuple(make_event(self.user_id, self.now, credits=cost) for cost in costs)
        renewal = Renewal(uuid7(self.now), *more) if more else None
        request = Settle(lease.asked.id, lease.fence if right else lease.fence + 1, calls, renewal)
        expected = self.unsettled(lease, request)
        reason, answer = self.answer(self.bench.usage.reservations.settle(request))
        assert reason == expected
        if answer is not None and lease.state is State.OPEN:
            lease.state = State.COMMITTED
            lease.settled = request, answer
            assert answer[0].committed == request.used
            self.renewed(lease, renewal, answer[2])

    def let_pass(self, time: timedelta) -> None:
        self.bench.clock.advance(seconds=time.total_seconds())

    def answer(self, call: Coroutine[Any, Any, T]) -> tuple[str, T | None]:
        """Returns the reason a request is refused for, or its answer."""
        try:
            return "", self.bench.run(call)
        except Refusal as refusal:
            return refusal.reason, None

    def fences_rise(self) -> None:
        for holder in HOLDERS:
            leases = [lease for lease in self.leases if lease.asked.holder == holder]
            assert [each.fence for each in leases] == list(range(1, len(leases) + 1))
            assert all(each.at(self.now) is not State.OPEN for each in leases[:-1])

    def held(self) -> int:
        leases = (each for each in self.leases if each.at(self.now) is State.OPEN)
        return super().held() + sum(each.asked.credits for each in leases)

    def last(self, holder: str) -> Leased | None:
        of_holder = (each for each in reversed(self.leases) if each.asked.holder == holder)
        return next(of_holder, None)

    def taken(self, asked: Lease, fence: int, answer: tuple[Hold, int] | None) -> None:
        self.leases.append(Leased(asked, fence, self.now + asked.ttl, answer))

    def coming_back(self, holder: str) -> int:
        """Returns what a holder's open lease gives back: nothing to grants that ended."""
        lease = self.last(holder)
        if lease is None or lease.at(self.now) is not State.OPEN:
            return 0
        back = self.bench.owner.fetchval(
            "SELECT coalesce(sum(d.amount), 0) FROM credit_reservations r"
            " CROSS JOIN unnest(r.grant_ids, r.drawn) AS d (id, amount)"
            " JOIN credit_grants g ON g.id = d.id AND g.voided_at IS NULL"
            " AND (g.expires_at IS NULL OR g.expires_at > $2) WHERE r.id = $1",
            lease.asked.id,
            self.now,
        )
        return int(self.bench.run(back))

    def unsettled(self, lease: Leased, request: Settle) -> str:
        """Returns the reason for which a lease cannot be settled like this."""
        state, last = lease.at(self.now), self.last(lease.asked.holder)
        if lease.settled and self.same(lease.settled[0], request):
            return ""
        if request.fence != lease.fence or state is State.RELEASED:
            return "LEASE_FENCED"
        if state is State.EXPIRED and lease is not last:
            return "LEASE_FENCED"
        if state is not State.OPEN:
            return RESOLVED[state]
        return "RESERVATION_EXCEEDED" if request.used > lease.asked.credits else ""

    def same(self, settled: Settle, request: Settle) -> bool:
        """Tells whether it says nothing new; new calls have new ids."""
        return not request.calls and (settled.fence, settled.used) == (request.fence, 0)

    def renewed(self, lease: Leased, renewal: Renewal | None, hold: Hold | None) -> None:
        """Takes in the next lease: as many credits as were there, up to those asked for."""
        if renewal is None or hold is None:
            assert hold is None
            assert renewal is None or self.closed or self.balance().available <= 0
            return
        assert 0 < hold.amount <= renewal.credits
        assert hold.amount == renewal.credits or self.balance().available == 0
        asked = Lease(renewal.id, self.user_id, hold.amount, renewal.ttl, lease.asked.holder)
        self.taken(asked, hold.fence, None)


bench = pytest.fixture(made_bench)


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.soak)])
def test_leases_obey_the_model(bench: Bench, examples: int) -> None:
    """Each lease has one end and each holder one lease, whoever looks and whenever."""
    obey(lambda: Leasing(bench), examples)
