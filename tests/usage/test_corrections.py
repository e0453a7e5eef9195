"""The rules of corrections, by properties."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from services.usage.domain.accounts import Draw, Kind
from services.usage.domain.book import Book
from services.usage.domain.corrections import Charge, Charged, committed_draws, reverse
from services.usage.domain.grants import Category, Grant, Terms
from services.usage.domain.holds import Hold

NOW = datetime(2026, 3, 1, tzinfo=UTC)
USER = UUID(int=1)


def a_grant(terms: Terms) -> Grant:
    return Grant(uuid4(), USER, terms, terms.amount, NOW, NOW)


def terms(amount: int, reference: str, expires_at: datetime | None = None) -> Terms:
    return Terms("test", reference, amount, 50, Category.PROMOTIONAL, None, expires_at)


def a_book(amounts: list[int], overdraft: int) -> Book:
    """An account with grants of these amounts."""
    book = Book(USER, 0, 0, 0, 0, overdraft, 0, None, None, uuid4)
    for number, amount in enumerate(amounts):
        book.add(a_grant(terms(amount, str(number), NOW + timedelta(days=number + 1))), NOW)
    return book


def charge_of(book: Book, cost: int, reversed_: int = 0) -> Charge:
    posting = book.spend(cost, NOW)
    event = Charged(uuid4(), "search", NOW, cost, reversed_)
    return Charge(posting.id, cost, reversed_, posting.draws, (event,))


def committed(book: Book, held: int, between: int, used: int) -> Charge:
    """Holds credits, spends others, commits the hold; returns it as a correction finds it."""
    until = NOW + timedelta(hours=1)
    hold = book.reserve(Hold(uuid4(), USER, held, "search", NOW, until, until), NOW)
    if between:
        book.spend(between, NOW)
    posting = book.commit(hold, used, None, NOW)
    draws = committed_draws(hold.draws, posting.draws, used)
    event = Charged(hold.id, "search", NOW, used, 0)
    return Charge(posting.id, used, 0, draws, (event,))


def balanced(book: Book) -> bool:
    left = sum(grant.remaining for grant in book.grants if grant.activated_at)
    return book.available == left - book.debt


@given(st.lists(st.integers(1, 20), max_size=4), st.integers(0, 30), st.data())
def test_a_correction_in_parts_is_one_correction(
    amounts: list[int], overdraft: int, data: st.DataObject
) -> None:
    """However it is cut, all of a charge puts every grant and the debt back where they were."""
    book = a_book(amounts, overdraft)
    if not book.spendable:
        return
    before = {grant.id: grant.remaining for grant in book.grants}
    charge = charge_of(book, data.draw(st.integers(1, book.spendable)))
    given_back = 0
    while given_back < charge.cost:
        part = data.draw(st.integers(1, charge.cost - given_back))
        at = Charge(charge.entry_id, charge.cost, given_back, charge.draws, charge.events)
        posting, made = reverse(book, at, part, NOW, a_grant)
        assert made is None
        assert (posting.kind, posting.amount) == (Kind.REVERSE, part)
        assert posting.balance_after == book.available
        assert balanced(book)
        given_back += part
    assert {grant.id: grant.remaining for grant in book.grants} == before
    assert (book.used, book.debt) == (0, 0)


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.integers(0, 30),
    st.booleans(),
    st.data(),
)
def test_a_corrected_commit_was_never_made(
    amounts: list[int], overdraft: int, busy: bool, data: st.DataObject
) -> None:
    """Used less, all or more than was held: all of it in parts is as if it had been released."""
    book = a_book(amounts, overdraft)
    held = data.draw(st.integers(1, book.available))
    between = data.draw(st.integers(0, book.spendable - held)) if busy else 0
    before = {grant.id: grant.remaining for grant in book.grants}
    cost = data.draw(st.integers(0, book.spendable - between))
    charge = committed(book, held, between, cost)
    drawn = sum(draw.amount for draw in charge.draws)
    assert drawn <= cost
    # Nothing is held on overdraft.
    assert drawn >= min(held, cost)
    given_back = 0
    while given_back < cost:
        part = data.draw(st.integers(1, cost - given_back))
        at = Charge(charge.entry_id, cost, given_back, charge.draws, charge.events)
        _, made = reverse(book, at, part, NOW, a_grant)
        # What went back when it was committed may have paid what others overdrew, no more.
        assert made is None
        assert balanced(book)
        given_back += part
    assert (book.used, book.reserved) == (between, 0)
    assert book.available == sum(amounts) - between
    assert all(0 <= grant.remaining <= grant.terms.amount for grant in book.grants)
    if not between:
        assert {grant.id: grant.remaining for grant in book.grants} == before


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 40))
def test_paid_overdraft_comes_back_as_a_grant(overdraft: int, later: int, given_back: int) -> None:
    """What lowers no debt any more is a grant that does not expire; everything still balances."""
    book = a_book([], overdraft)
    charge = charge_of(book, overdraft)
    book.add(a_grant(terms(later, "later")), NOW)
    debt = book.debt
    amount = min(given_back, overdraft)
    _, made = reverse(book, charge, amount, NOW, a_grant)
    assert book.debt == max(debt - amount, 0)
    assert (made.terms.amount if made else 0) == max(amount - debt, 0)
    assert made is None or (made.terms.expires_at is None and made.activated_at == NOW)
    assert balanced(book)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(0, 5), st.data())
def test_what_comes_back_to_a_grant_that_is_over_is_taken_away(
    amounts: list[int], days: int, data: st.DataObject
) -> None:
    """Only grants that still live keep what comes back; each loss is an entry of its own."""
    book = a_book(amounts, 0)
    charge = charge_of(book, sum(amounts))
    at = NOW + timedelta(days=days)
    book.mature(at)
    voided = data.draw(st.sampled_from(book.grants))
    book.retire(voided, Kind.VOID, at)
    seen = len(book.postings)
    posting, _ = reverse(book, charge, charge.cost, at, a_grant)
    live = [
        grant
        for grant in book.grants
        if grant is not voided and grant.terms.expires_at and grant.terms.expires_at > at
    ]
    assert {grant.id for grant in book.grants if grant.remaining} == {grant.id for grant in live}
    assert book.available == sum(grant.remaining for grant in live)
    assert posting.draws == tuple(Draw(d.grant_id, -d.amount) for d in reversed(charge.draws))
    assert len(book.postings) - seen == 1 + len(amounts) - len(live)
    assert voided.voided_at == at
    assert balanced(book)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_calls_get_back_at_most_what_they_cost(costs: list[int], data: st.DataObject) -> None:
    """The newest call of an entry gets back first, none more than it cost."""
    events = tuple(
        Charged(uuid4(), "search", NOW, cost, data.draw(st.integers(0, cost))) for cost in costs
    )
    charge = Charge(uuid4(), sum(costs), sum(e.corrected for e in events), (), events)
    amount = data.draw(st.integers(0, charge.correctable))
    parts = list(charge.allot(amount))
    assert sum(part for _, part in parts) == amount
    assert all(0 < part <= event.credits - event.corrected for event, part in parts)
    places = [events.index(event) for event, _ in parts]
    assert places == sorted(places, reverse=True)
