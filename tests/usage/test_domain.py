"""The rules of credits and metering, by properties."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.usage.domain.book import Book
from services.usage.domain.grants import Category, Grant, Terms
from services.usage.domain.metering import (
    NEWEST_EVENT,
    OLDEST_EVENT,
    Event,
    Outcome,
    in_window,
    settle,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
USERS = [UUID(int=number) for number in range(1, 4)]

# Few users, ids and tools, so that repeats and collisions are common.
events = st.builds(
    Event,
    id=st.integers(0, 12).map(lambda number: UUID(int=number)),
    user_id=st.sampled_from(USERS),
    tool_name=st.sampled_from(["search", "write"]),
    credits=st.integers(0, 20) | st.just(1_000_000),
    time=st.just(NOW),
)


@st.composite
def accounts(draw: st.DrawFn) -> dict[UUID, Book]:
    """Accounts of some of the users, none overdrawn."""
    opened = {}
    for user_id in draw(st.sets(st.sampled_from(USERS))):
        granted = draw(st.integers(0, 60))
        overdraft = draw(st.sampled_from([0, 0, 10]))
        used = draw(st.integers(0, granted + overdraft))
        reserved = draw(st.integers(0, granted + overdraft - used))
        opened[user_id] = Book(user_id, granted, used, reserved, 0, overdraft, 1, None, None, uuid4)
    return opened


@given(st.lists(events, max_size=30), accounts(), st.lists(events, max_size=5))
def test_a_flush_never_overspends(
    flush: list[Event], opened: dict[UUID, Book], recorded: list[Event]
) -> None:
    """Whatever comes, nobody spends more than the balance and the overdraft together."""
    settlement = settle(flush, opened, recorded)
    for user_id, spent in settlement.spent.items():
        assert spent <= opened[user_id].available + opened[user_id].overdraft_limit
    for event, result in zip(flush, settlement.results, strict=True):
        limit = opened[event.user_id].overdraft_limit if event.user_id in opened else 0
        assert result.available >= -limit


@given(st.lists(events, max_size=30), accounts(), st.lists(events, max_size=5))
def test_a_flush_is_decided_in_order(
    flush: list[Event], opened: dict[UUID, Book], recorded: list[Event]
) -> None:
    """Each event has one result, in order, as if it had come alone after those before it."""
    settlement = settle(flush, opened, recorded)
    assert len(settlement.results) == len(flush)
    left = {user_id: a.available + a.overdraft_limit for user_id, a in opened.items()}
    seen = {event.id: event for event in recorded}
    accepted = []
    for event, result in zip(flush, settlement.results, strict=True):
        if event.id in seen:
            same = seen[event.id] == event
            expected = Outcome.DUPLICATE if same else Outcome.EVENT_ID_REUSED
        elif event.user_id not in left:
            expected = Outcome.ACCOUNT_NOT_OPEN
        elif event.credits > left[event.user_id]:
            expected = Outcome.NO_CREDITS
        else:
            expected = Outcome.ACCEPTED
            left[event.user_id] -= event.credits
            seen[event.id] = event
            accepted.append(event)
        assert result.outcome is expected
    assert settlement.accepted == accepted
    assert sum(settlement.spent.values()) == sum(event.credits for event in accepted)


@given(st.lists(events, max_size=20), accounts())
def test_a_repeated_flush_spends_nothing(flush: list[Event], opened: dict[UUID, Book]) -> None:
    """What was accepted before is a duplicate and costs nothing again."""
    accepted = settle(flush, opened, []).accepted
    again = settle(accepted, opened, accepted)
    assert {result.outcome for result in again.results} <= {Outcome.DUPLICATE}
    assert (again.accepted, dict(again.spent)) == ([], {})


@given(st.integers(0, 200), st.lists(st.integers(1, 50), max_size=8))
def test_credits_burn_in_order(amount: int, remaining: list[int]) -> None:
    """Draws take from grants in order, each emptied before the next, and cover what they can."""
    book = Book(USERS[0], 0, 0, 0, 0, 1000, 0, None, None, uuid4)
    for number, left in enumerate(remaining):
        terms = Terms("test", str(number), left, 50, Category.PAID)
        book.add(Grant(UUID(int=number), USERS[0], terms, left, NOW, NOW), NOW)
    draws = book.spend(amount, NOW).draws
    assert sum(draw.amount for draw in draws) == min(amount, sum(remaining))
    assert book.debt == max(0, amount - sum(remaining))
    assert [draw.grant_id for draw in draws] == [UUID(int=at) for at in range(len(draws))]
    assert all(draw.amount > 0 for draw in draws)
    for draw, left in list(zip(draws, remaining, strict=False))[:-1]:
        assert draw.amount == left


@pytest.mark.parametrize(
    ("time", "accepted"),
    [
        (NOW - OLDEST_EVENT, True),
        (NOW - OLDEST_EVENT - TICK, False),
        (NOW + NEWEST_EVENT, True),
        (NOW + NEWEST_EVENT + TICK, False),
        (NOW, True),
    ],
)
def test_the_window_has_edges(time: datetime, accepted: bool) -> None:
    """An event is accepted from 35 days back to 5 minutes ahead, both included."""
    assert in_window(time, NOW) is accepted
