"""
Corrections: what was spent comes back to where it was taken from.

An entry's draws are unwound from the last to the first. What it spent beyond them,
on overdraft, was spent last and comes back first. So how far an entry is unwound is
one number, the credits it has given back. A commit is unwound as if it had spent at
once what it spent in the end: of what was held, then beyond it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from services.usage.domain.accounts import Draw, Kind, Posting
from services.usage.domain.book import Book, earliest
from services.usage.domain.grants import DEFAULT_PRIORITY, Category, Grant, Terms

# No caller can name them: a source on the wire has no colon.
ADJUSTMENT = "finity:adjustment"
CORRECTION = "finity:correction"


class Charged(NamedTuple):
    """A tool call that an entry paid for, and what was given back of it."""

    event_id: UUID
    tool_name: str
    time: datetime
    credits: int
    corrected: int


@dataclass(frozen=True, slots=True)
class Charge:
    """An entry that took credits, as a correction finds it."""

    entry_id: UUID
    cost: int
    """Credits the calls of the whole entry took; of a commit, those held before included."""
    reversed: int
    """Credits the whole entry gave back so far."""
    draws: tuple[Draw, ...]
    """What paid for them, in the order in which it was taken."""
    events: tuple[Charged, ...]
    """The calls that are to be corrected; oldest first."""

    @property
    def correctable(self) -> int:
        """Most credits that can be given back of these calls."""
        return sum(event.credits - event.corrected for event in self.events)

    def allot(self, amount: int) -> Iterator[tuple[Charged, int]]:
        """Yields what of `amount` each call gets, the newest first."""
        for event in reversed(self.events):
            part = min(amount, event.credits - event.corrected)
            if part:
                yield event, part
            amount -= part

    def unwind(self, amount: int) -> Iterator[tuple[UUID | None, int]]:
        """Yields which grant gets what of the next `amount`; None stands for overdraft."""
        drawn = sum(draw.amount for draw in self.draws)
        parts: list[tuple[UUID | None, int]] = [(None, self.cost - drawn), *reversed(self.draws)]
        skipped = self.reversed
        for grant_id, share in parts:
            passed = min(skipped, share)
            part = min(amount, share - passed)
            skipped, amount = skipped - passed, amount - part
            if part:
                yield grant_id, part


def committed_draws(held: Sequence[Draw], moved: Sequence[Draw], cost: int) -> tuple[Draw, ...]:
    """
    Returns what a commit's cost was paid from, in the order in which it was taken.

    `held` are the draws of its hold, `moved` those of its own entry. A commit for more
    than was held took those of its entry too, and overdraft beyond them. One for less
    used up the first of what was held, for the last went back. Its own draws do not
    tell that: where debt was paid of what went back, they have less.
    """
    if cost >= sum(draw.amount for draw in held):
        return (*held, *moved)
    paid: list[Draw] = []
    for draw in held:
        share = min(cost, draw.amount)
        if share:
            paid.append(Draw(draw.grant_id, share))
        cost -= share
    return tuple(paid)


def reverse(
    book: Book,
    charge: Charge,
    amount: int,
    at: datetime,
    new_grant: Callable[[Terms], Grant],
) -> tuple[Posting, Grant | None]:
    """
    Gives back `amount` of a charge, at most what is correctable.

    The book has every grant the charge drew on. What comes back pays debt first. What
    comes back to a grant that is over is taken away at once, by entries of their own.
    Overdraft that was paid since comes back as a grant that does not expire, returned
    to be stored.
    """
    grants = {grant.id: grant for grant in book.grants}
    draws: list[Draw] = []
    over: list[Grant] = []
    made: Grant | None = None
    book.used -= amount
    for grant_id, part in charge.unwind(amount):
        if grant_id is None:
            paid = min(book.debt, part)
            book.debt -= paid
            if part > paid:
                made = _stand_in(book, part - paid, charge, at, new_grant)
            continue
        grant = grants[grant_id]
        draws += _give_back(book, grant, part)
        if is_over(grant, at):
            over.append(grant)
        else:
            draws += _pay_debt(book, grant)
            book.due_at = earliest([book.due_at, grant.due()])
    posting = book.post(
        Kind.REVERSE,
        amount,
        at,
        tuple(draws),
        grant_id=made.id if made else None,
        reverses_id=charge.entry_id,
    )
    for grant in over:
        _take_away(book, grant, at)
    return posting, made


def is_over(grant: Grant, at: datetime) -> bool:
    """Tells whether a grant can hold nothing any more."""
    expires_at = grant.terms.expires_at
    return grant.voided_at is not None or (expires_at is not None and expires_at <= at)


def adjustment(amount: int, reference: str) -> Terms:
    """Returns the terms of credits added by hand."""
    return Terms(ADJUSTMENT, reference, amount, DEFAULT_PRIORITY, Category.PROMOTIONAL)


def deduct(book: Book, amount: int, at: datetime) -> Posting:
    """Takes credits away in burn order; the caller has seen that they are there."""
    draws = book.take(amount)
    book.granted -= amount
    return book.post(Kind.ADJUST, -amount, at, draws)


def _give_back(book: Book, grant: Grant, amount: int) -> Sequence[Draw]:
    book.draw(grant, -amount)
    return [Draw(grant.id, -amount)]


def _pay_debt(book: Book, grant: Grant) -> Sequence[Draw]:
    paid = min(book.debt, grant.remaining)
    if not paid:
        return []
    book.debt -= paid
    book.draw(grant, paid)
    return [Draw(grant.id, paid)]


def _take_away(book: Book, grant: Grant, at: datetime) -> None:
    """Ends again what came back to a grant that had ended."""
    voided_at = grant.voided_at
    book.retire(grant, Kind.EXPIRE if voided_at is None else Kind.VOID, at)
    grant.voided_at = voided_at


def _stand_in(
    book: Book,
    amount: int,
    charge: Charge,
    at: datetime,
    new_grant: Callable[[Terms], Grant],
) -> Grant:
    """Returns the grant for overdraft that other grants have paid since; it counts at once."""
    reference = f"{charge.entry_id}:{charge.reversed}"
    grant = new_grant(Terms(CORRECTION, reference, amount, DEFAULT_PRIORITY, Category.PROMOTIONAL))
    grant.activated_at = at
    book.grants.append(grant)
    book.grants.sort(key=lambda each: each.burn_order)
    book.changed[grant.id] = grant
    return grant
