"""The rules of reservations and leases: what becomes of what is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from services.usage.domain.accounts import Balance
from services.usage.domain.book import Book
from services.usage.domain.calendar import Window
from services.usage.domain.holds import Hold, State
from services.usage.domain.metering import Event
from services.usage.domain.quotas import Limits
from services.usage.domain.requests import (
    Commit,
    Extend,
    Fence,
    Lease,
    Outcome,
    Overage,
    Release,
    Renewal,
    Request,
    Reserve,
    Result,
    Settle,
)

DEFAULT_TTL = timedelta(minutes=5)


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
    recorded: dict[UUID, Event]
    """Recorded tool calls with the ids of requests, and with those of calls to be settled."""
    now: datetime
    holds: dict[UUID, Hold] = field(default_factory=dict)
    """Those asked about that exist; of locked accounts their book knows better."""
    fences: dict[tuple[UUID, str], Fence] = field(default_factory=dict)
    """By user and holder; the lease of each is among the holds."""
    moved: set[tuple[UUID, str]] = field(default_factory=set)
    """Fences to be written."""
    limits: Mapping[UUID, Limits] = field(default_factory=dict)
    """The quotas of accounts that have some, for the tools of the requests."""

    def decide(self, request: Request) -> Result:
        """Does what is asked if it can be done; what was done before is answered as then."""
        if isinstance(request, Reserve):
            return self._reserve(request)
        if isinstance(request, Lease):
            return self._lease(request)
        if isinstance(request, Settle):
            return self._settle(request)
        return self._resolve(request)

    def _resolve(self, request: Commit | Release | Extend) -> Result:
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
        refused = (
            self._admit(request.user_id)
            or self._limit(request)
            or self._cover(request.user_id, request.credits)
        )
        if refused is not None:
            return refused
        if request.id in self.recorded:
            return Result(Outcome.EVENT_ID_REUSED)
        hold = self._hold(request)
        if limit := self.limits.get(request.user_id):
            limit.count(request.tool_name, request.credits)
        return Result(Outcome.DONE, hold, hold.available)

    def _hold(self, request: Reserve | Lease, fence: int = 0) -> Hold:
        tool_name = request.tool_name if isinstance(request, Reserve) else ""
        holder = request.holder if isinstance(request, Lease) else ""
        until = self.now + request.ttl
        asked = Hold(
            request.id,
            request.user_id,
            request.credits,
            tool_name,
            self.now,
            until,
            until,
            holder=holder,
            fence=fence,
        )
        hold = self.books[request.user_id].reserve(asked, self.now)
        self.holds[hold.id] = hold
        return hold

    def _lease(self, request: Lease) -> Result:
        hold = self._find(request.id)
        if hold is not None:
            return _leased_before(hold, request)
        refused = self._admit(request.user_id)
        if refused is not None:
            return refused
        book = self.books[request.user_id]
        earlier = self._last(request.user_id, request.holder)
        back = book.returnable(earlier, self.now) if earlier else 0
        refused = self._cover(request.user_id, request.credits, back)
        if refused is not None:
            return refused
        if earlier is not None:
            book.release(earlier, self.now)
        hold = self._take(request)
        return Result(Outcome.DONE, hold, hold.available)

    def _take(self, request: Lease) -> Hold:
        """Holds a lease's credits and moves its holder's fence."""
        holder = (request.user_id, request.holder)
        number = self.fences[holder].number + 1 if holder in self.fences else 1
        self.fences[holder] = Fence(number, request.id)
        self.moved.add(holder)
        return self._hold(request, number)

    def _last(self, user_id: UUID, holder: str) -> Hold | None:
        """Returns the holder's lease if it is still open."""
        fence = self.fences.get((user_id, holder))
        hold = self._find(fence.lease_id) if fence else None
        return hold if hold is not None and hold.state is State.OPEN else None

    def _settle(self, request: Settle) -> Result:
        hold = self._find(request.id)
        if hold is None or not hold.holder:
            return Result(Outcome.NOT_FOUND)
        if hold.state is not State.OPEN or request.fence != hold.fence:
            return self._settled_before(hold, request)
        book = self.books.get(hold.user_id)
        if book is None:
            return Result(Outcome.ACCOUNT_BUSY)
        calls = tuple(call._replace(user_id=hold.user_id) for call in request.calls)
        refused = self._unfit(book, hold, request)
        if refused is not None:
            return refused
        entry = book.commit(hold, request.used, None, self.now)
        self.recorded.update((call.id, call) for call in calls)
        renewed = self._renew(book, hold, request.renewal)
        settled, left = book.holds[hold.id], book.available
        return Result(Outcome.DONE, settled, left, entry_id=entry.id, calls=calls, renewed=renewed)

    def _unfit(self, book: Book, hold: Hold, request: Settle) -> Result | None:
        """Refuses a settlement of more than is held, or under ids that are taken."""
        if request.used > hold.amount:
            more = request.used - hold.amount
            return Result(Outcome.EXCEEDED, hold, book.available, more)
        ids = {call.id for call in request.calls}
        if len(ids) < len(request.calls) or not self.recorded.keys().isdisjoint(ids):
            return Result(Outcome.EVENT_ID_REUSED)
        if request.renewal is not None and self._find(request.renewal.id) is not None:
            return Result(Outcome.ID_REUSED)
        return None

    def _renew(self, book: Book, hold: Hold, renewal: Renewal | None) -> Hold | None:
        """Takes the holder's next lease, of what is there; None if that is nothing."""
        there = 0 if book.closed_at is not None else book.available
        if renewal is None or there <= 0:
            return None
        amount = min(renewal.credits, there)
        return self._take(Lease(renewal.id, hold.user_id, amount, renewal.ttl, hold.holder))

    def _settled_before(self, hold: Hold, request: Settle) -> Result:
        calls = (call._replace(user_id=hold.user_id) for call in request.calls)
        same = (hold.fence, hold.committed) == (request.fence, request.used)
        if same and all(self.recorded.get(call.id) == call for call in calls):
            renewed = self._find(request.renewal.id) if request.renewal else None
            renewed = renewed.as_made() if renewed else None
            return Result(Outcome.DONE, hold, _left(hold, renewed), renewed=renewed)
        last = self.fences[hold.user_id, hold.holder].number
        if request.fence != hold.fence or hold.state is State.RELEASED:
            return Result(Outcome.FENCED, hold, asked=last)
        if hold.state is State.EXPIRED and hold.fence < last:
            return Result(Outcome.FENCED, hold, asked=last)
        return Result(_RESOLVED[hold.state], hold)

    def _admit(self, user_id: UUID) -> Result | None:
        """Refuses an account that can hold nothing."""
        book = self.books.get(user_id)
        if book is None:
            busy = user_id in self.busy
            return Result(Outcome.ACCOUNT_BUSY if busy else Outcome.ACCOUNT_NOT_OPEN)
        if book.closed_at is not None:
            return Result(Outcome.ACCOUNT_CLOSED)
        return None

    def _limit(self, request: Reserve) -> Result | None:
        """Refuses what a quota has no room for; a hold counts when it is admitted."""
        limit = self.limits.get(request.user_id)
        exceeded = limit.exceeded(request.tool_name, request.credits) if limit else None
        if exceeded is None:
            return None
        minute = exceeded.window is Window.MINUTE
        outcome = Outcome.RATE_LIMIT if minute else Outcome.QUOTA_WINDOW
        return Result(outcome, exceeded=exceeded)

    def _cover(self, user_id: UUID, amount: int, back: int = 0) -> Result | None:
        """Refuses what is more than there is and comes `back` first."""
        # Nothing is held on overdraft: debt that may come back has no grant to come back to.
        there = self.books[user_id].available + back
        if amount <= there:
            return None
        return Result(Outcome.NO_CREDITS, None, there, amount, amount - there)

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


def _leased_before(hold: Hold, request: Lease) -> Result:
    ttl = hold.first_expires_at - hold.created_at
    if Lease(hold.id, hold.user_id, hold.amount, ttl, hold.holder) != request:
        return Result(Outcome.ID_REUSED)
    return Result(Outcome.DONE, hold.as_made(), hold.available)


def _left(settled: Hold, renewed: Hold | None) -> int:
    return renewed.available if renewed else settled.resolved_available or 0


def _answer_again(hold: Hold, request: Commit | Release | Extend) -> Result:
    """Answers what was asked before as it was then, anything else by what became of the hold."""
    if isinstance(request, Commit):
        same = (hold.committed, hold.committed_tool) == (request.credits, _tool(hold, request))
    else:
        same = isinstance(request, Release) and hold.state is State.RELEASED
    if same and hold.state is not State.EXPIRED:
        return Result(Outcome.DONE, hold, hold.resolved_available or 0)
    return Result(_RESOLVED[hold.state], hold)
