"""
A locked account as the one place where credits move.

Whatever changes an account goes through here and leaves a posting. At any time
available = what is left of the active grants - debt, and debt is only there while no
active grant has anything left; the database refuses a write that breaks the first.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from services.usage.domain.accounts import Balance, Draw, Kind, Posting
from services.usage.domain.grants import Grant
from services.usage.domain.standing import Standing


@dataclass(slots=True)
class Book:
    """An account that nobody else may write, its grants, and what was posted since."""

    user_id: UUID
    granted: int
    used: int
    reserved: int
    debt: int
    overdraft_limit: int
    version: int
    closed_at: datetime | None
    due_at: datetime | None
    new_id: Callable[[], UUID]
    grants: list[Grant] = field(default_factory=list)
    """Those with something left and those still to begin, in burn order."""
    postings: list[Posting] = field(default_factory=list)
    changed: dict[UUID, Grant] = field(default_factory=dict)
    """Grants to be written."""
    standing: Standing = field(default_factory=Standing)
    granted_now: list[Grant] = field(default_factory=list)
    """Allowances that are not stored yet."""

    @property
    def available(self) -> int:
        return self.granted - self.used - self.reserved

    @property
    def spendable(self) -> int:
        """Credits that can be spent, overdraft included."""
        return self.available + self.overdraft_limit

    def balance(self) -> Balance:
        return Balance(
            self.user_id,
            self.granted,
            self.used,
            self.reserved,
            self.overdraft_limit,
            self.version,
            self.closed_at,
            self.due_at,
        )

    def spend(self, amount: int, at: datetime) -> Posting:
        """Uses credits up; the caller has seen that they are there."""
        draws = self.take(amount)
        self.used += amount
        return self.post(Kind.USE, -amount, at, draws)

    def take(self, amount: int) -> tuple[Draw, ...]:
        """Takes credits from the grants in burn order; what none covers becomes debt."""
        draws: list[Draw] = []
        for grant in self.grants:
            if amount == 0:
                break
            if grant.activated_at is None or grant.remaining == 0:
                continue
            taken = min(amount, grant.remaining)
            self.draw(grant, taken)
            draws.append(Draw(grant.id, taken))
            amount -= taken
        self.debt += amount
        return tuple(draws)

    def draw(self, grant: Grant, amount: int) -> None:
        """Takes from one grant, or gives back to it if negative."""
        grant.remaining -= amount
        self.changed[grant.id] = grant

    def add(self, grant: Grant, at: datetime) -> None:
        """Takes a new grant in; it counts at once if it is effective."""
        self.grants.append(grant)
        self.grants.sort(key=lambda each: each.burn_order)
        if grant.effective_at <= at:
            self.activate(grant, at)
        self.due_at = earliest([self.due_at, grant.due()])

    def activate(self, grant: Grant, at: datetime) -> None:
        """Lets a grant count; debt is paid from it first."""
        self.granted += grant.terms.amount
        grant.activated_at = at
        paid = min(self.debt, grant.terms.amount)
        self.debt -= paid
        self.draw(grant, paid)
        draws = (Draw(grant.id, paid),) if paid else ()
        self.post(Kind.GRANT, grant.terms.amount, at, draws, grant_id=grant.id)

    def retire(self, grant: Grant, kind: Kind, at: datetime) -> None:
        """Takes away what is left of a grant, for it expires or is voided."""
        lost = grant.remaining
        if kind is Kind.VOID:
            grant.voided_at = at
        self.draw(grant, lost)
        if lost and grant.activated_at is not None:
            self.granted -= lost
            self.post(kind, -lost, at, (Draw(grant.id, lost),), grant_id=grant.id)

    def close(self, at: datetime) -> None:
        """Ends the account for good; whatever its grants have left is voided."""
        for grant in self.grants:
            self.retire(grant, Kind.VOID, at)
        self.closed_at = at
        self.due_at = None
        self.standing.forget()

    def overdue(self, now: datetime) -> bool:
        """Tells whether something of the account has begun, is over or is to be granted."""
        if self.due_at is not None and self.due_at <= now:
            return True
        return self.closed_at is None and self.standing.owed(now)

    def mature(self, now: datetime) -> None:
        """Lets begin and expire what has by now, in the order of their times."""
        if self.closed_at is None and self.standing.owed(now):
            # Entries rise with time: nothing may have been written since the month began.
            began = self.standing.month_began(now)
            at = began if self.due_at is not None and self.due_at <= began else now
            self._mature_grants(at)
            self.grant_allowance(at)
        self._mature_grants(now)
        allowance = self.standing.refills_at if self.closed_at is None else None
        self.due_at = earliest([allowance, *(grant.due() for grant in self.grants)])

    def grant_allowance(self, at: datetime) -> None:
        """Grants what is missing of the current month's allowance."""
        terms = self.standing.grant(at)
        if terms is not None:
            grant = Grant(self.new_id(), self.user_id, terms, terms.amount, at, at)
            self.granted_now.append(grant)
            self.add(grant, at)

    def _mature_grants(self, now: datetime) -> None:
        while due := self._next_due(now):
            at, grant = due
            if grant.activated_at is None:
                self.activate(grant, at)
            else:
                self.retire(grant, Kind.EXPIRE, at)

    def post(
        self,
        kind: Kind,
        amount: int,
        at: datetime,
        draws: tuple[Draw, ...] = (),
        *,
        grant_id: UUID | None = None,
        reservation_id: UUID | None = None,
        reverses_id: UUID | None = None,
    ) -> Posting:
        """Writes down a change that was just made."""
        self.version += 1
        posting = Posting(
            self.new_id(),
            kind,
            amount,
            self.available,
            self.version,
            at,
            draws,
            grant_id,
            reservation_id,
            reverses_id,
        )
        self.postings.append(posting)
        return posting

    def _next_due(self, now: datetime) -> tuple[datetime, Grant] | None:
        due = [
            (at, grant.burn_order, grant)
            for grant in self.grants
            if (at := grant.due()) is not None and at <= now
        ]
        if not due:
            return None
        at, _, grant = min(due, key=lambda each: each[:2])
        return at, grant


def earliest(times: Iterable[datetime | None]) -> datetime | None:
    """Returns the first of the times there are."""
    return min((time for time in times if time is not None), default=None)


def in_burn_order(grants: Iterable[Grant]) -> Sequence[Grant]:
    return sorted(grants, key=lambda grant: grant.burn_order)
