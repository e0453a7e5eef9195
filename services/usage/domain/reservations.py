"""The rules of reservations: what is asked of them, and what becomes of it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple
from uuid import UUID

from services.usage.domain.accounts import Balance
from services.usage.domain.book import Book
from services.usage.domain.holds import Hold, State

DEFAULT_TTL = timedelta(minutes=5)


class Overage(Enum):
    """Where credits beyond those that were held may come from."""

    REFUSE = "refuse"
    WITHIN_BALANCE = "within_balance"
    OVERDRAFT = "overdraft"


class Outcome(Enum):
    """What became of a request."""

    DONE = "done"
    NO_CREDITS = "no_credits"
    ACCOUNT_NOT_OPEN = "account_not_open"
    ACCOUNT_CLOSED = "account_closed"
    ACCOUNT_BUSY = "account_busy"
    EVENT_ID_REUSED = "event_id_reused"
    NOT_FOUND = "not_found"
    ID_REUSED = "id_reused"
    EXCEEDED = "exceeded"
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"


class Reserve(NamedTuple):
    """Asks for credits to be held."""

    id: UUID
    user_id: UUID
    credits: int
    ttl: timedelta
    tool_name: str


class Commit(NamedTuple):
    """Asks for a hold to be used up."""

    id: UUID
    credits: int
    overage: Overage
    tool_name: str
    """What it was used for; empty is what it is held for."""


class Release(NamedTuple):
    """Asks for a hold to be given back."""

    id: UUID


class Extend(NamedTuple):
    """Asks for a hold to end no sooner than `ttl` from now."""

    id: UUID
    ttl: timedelta


Request = Reserve | Commit | Release | Extend


class Result(NamedTuple):
    """What became of one request."""

    outcome: Outcome
    hold: Hold | None = None
    """The hold after it; that there is, where it was refused."""
    available: int = 0
    asked: int = 0
    """Credits that were refused: all of a new hold, what a commit takes beyond its hold."""
    short: int = 0
    """Those of them that are missing."""
    entry_id: UUID | None = None
    """The entry with which it was used up just now."""


_RESOLVED = {
    State.COMMITTED: Outcome.COMMITTED,
    State.RELEASED: Outcome.RELEASED,
    State.EXPIRED: Outcome.EXPIRED,
}


@dataclass(slots=True)
class Desk:
    """The accounts and holds of a flush; decides its requests one after the other."""

    books: Mapping[UUID, Book]
    """Locked, and matured."""
    busy: Mapping[UUID, Balance]
    """Accounts somebody else holds."""
    recorded: Collection[UUID]
    """Ids of requests that are those of recorded tool calls."""
    now: datetime
    holds: dict[UUID, Hold] = field(default_factory=dict)
    """Those asked about that exist; of locked accounts their book knows better."""

    def decide(self, request: Request) -> Result:
        """Does what is asked if it can be done; what was done before is answered as then."""
        if isinstance(request, Reserve):
            return self._reserve(request)
        hold = self._find(request.id)
        # A lease is settled by its holder, and by nothing else.
        if hold is None or hold.holder:
            return Result(Outcome.NOT_FOUND)
        if hold.state is not State.OPEN:
            return _answer_again(hold, request)
        book = self.books.get(hold.user_id)
        if book is None:
            return Result(Outcome.ACCOUNT_BUSY)
        if isinstance(request, Commit):
            return self._commit(book, hold, request)
        if isinstance(request, Release):
            book.release(hold, self.now)
        else:
            book.keep(hold._replace(expires_at=max(hold.expires_at, self.now + request.ttl)))
        return Result(Outcome.DONE, book.holds[hold.id], book.available)

    def _find(self, hold_id: UUID) -> Hold | None:
        hold = self.holds.get(hold_id)
        if hold is None:
            return None
        book = self.books.get(hold.user_id)
        return book.holds.get(hold_id, hold) if book else hold

    def _reserve(self, request: Reserve) -> Result:
        hold = self._find(request.id)
        if hold is not None:
            return _reserved_before(hold, request)
        refused = self._admit(request.user_id, request.credits)
        if refused is not None:
            return refused
        if request.id in self.recorded:
            return Result(Outcome.EVENT_ID_REUSED)
        book, until = self.books[request.user_id], self.now + request.ttl
        hold = book.reserve(
            Hold(
                request.id,
                request.user_id,
                request.credits,
                request.tool_name,
                self.now,
                until,
                until,
            ),
            self.now,
        )
        self.holds[hold.id] = hold
        return Result(Outcome.DONE, hold, hold.available)

    def _admit(self, user_id: UUID, amount: int) -> Result | None:
        """Refuses what an account cannot hold."""
        book = self.books.get(user_id)
        if book is None:
            busy = user_id in self.busy
            return Result(Outcome.ACCOUNT_BUSY if busy else Outcome.ACCOUNT_NOT_OPEN)
        if book.closed_at is not None:
            return Result(Outcome.ACCOUNT_CLOSED)
        # Nothing is held on overdraft: debt that may come back has no grant to come back to.
        if amount > book.available:
            short = amount - book.available
            return Result(Outcome.NO_CREDITS, None, book.available, amount, short)
        return None

    def _commit(self, book: Book, hold: Hold, request: Commit) -> Result:
        refused = _overage(book, hold, request)
        if refused is not None:
            return refused
        if hold.id in self.recorded:
            return Result(Outcome.EVENT_ID_REUSED)
        entry = book.commit(hold, request.credits, _tool(hold, request), self.now)
        return Result(Outcome.DONE, book.holds[hold.id], book.available, entry_id=entry.id)


def _overage(book: Book, hold: Hold, request: Commit) -> Result | None:
    """Refuses credits beyond the hold that are not there or that the policy does not allow."""
    more = request.credits - hold.amount
    if more <= 0:
        return None
    if request.overage is Overage.REFUSE:
        return Result(Outcome.EXCEEDED, hold, book.available, more)
    if book.closed_at is not None:
        return Result(Outcome.ACCOUNT_CLOSED)
    there = book.available if request.overage is Overage.WITHIN_BALANCE else book.spendable
    if more <= there:
        return None
    return Result(Outcome.NO_CREDITS, hold, book.available, more, more - there)


def _tool(hold: Hold, request: Commit) -> str | None:
    return request.tool_name if request.tool_name not in {"", hold.tool_name} else None


def _reserved_before(hold: Hold, request: Reserve) -> Result:
    asked = Reserve(
        hold.id, hold.user_id, hold.amount, hold.first_expires_at - hold.created_at, hold.tool_name
    )
    if hold.holder or asked != request:
        return Result(Outcome.ID_REUSED)
    return Result(Outcome.DONE, hold.as_made(), hold.available)


def _answer_again(hold: Hold, request: Commit | Release | Extend) -> Result:
    """Answers what was asked before as it was then, anything else by what became of the hold."""
    if isinstance(request, Commit):
        same = (hold.committed, hold.committed_tool) == (request.credits, _tool(hold, request))
    else:
        same = isinstance(request, Release) and hold.state is State.RELEASED
    if same and hold.state is not State.EXPIRED:
        return Result(Outcome.DONE, hold, hold.resolved_available or 0)
    return Result(_RESOLVED[hold.state], hold)
