"""
An account as the one place where credits move.

Whatever changes an account goes through here and leaves a posting. At any time
available = what is left of the active grants - debt, and debt is only there while no
active grant has anything left; the database refuses a write that breaks the first.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from services.usage.domain.accounts import Balance, Draw, Kind, Posting
from services.usage.domain.grants import Grant
from services.usage.domain.holds import Hold, State
from services.usage.domain.standing import Standing


@dataclass(slots=True)
class Book:
    """
    An account, its grants, and what was posted since.

    Nobody else may write it, be it that it is locked or that a change in between is found out.
    """

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
    holds: dict[UUID, Hold] = field(default_factory=dict)
    """Those that are asked about and those that are over; their grants are in `grants`."""
    next_hold_at: datetime | None = None
    """When the first hold that is not over is; known while the account matures."""
    new_holds: set[UUID] = field(default_factory=set)
    changed_holds: dict[UUID, Hold] = field(default_factory=dict)
    """Holds to be written, new ones among them."""
    actor: str | None = None
    """Whoever acts from now on, for what is posted; see Posting."""
    note: str | None = None
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

    def reserve(self, hold: Hold, at: datetime) -> Hold:
        """Holds credits; the caller has seen that they are available."""
        draws = self.take(hold.amount)
        self.reserved += hold.amount
        self.post(Kind.RESERVE, -hold.amount, at, draws, reservation_id=hold.id)
        self.due_at = earliest([self.due_at, hold.expires_at])
        self.new_holds.add(hold.id)
        return self.keep(hold._replace(draws=draws, available=self.available))

    def commit(self, hold: Hold, used: int, tool_name: str | None, at: datetime) -> Posting:
        """Uses up what was held: less gives back, more takes; the caller has seen it is there."""
        self.reserved -= hold.amount
        self.used += used
        more = max(used - hold.amount, 0)
        ended: list[tuple[Grant, Kind]] = []
        if more:
            draws = self.take(more)
        else:
            draws, ended = self._give_back(hold.draws, hold.amount - used, at)
        posting = self.post(Kind.COMMIT, hold.amount - used, at, draws, reservation_id=hold.id)
        self._retire_all(ended, at)
        self._resolve(hold, State.COMMITTED, at, committed=used, tool_name=tool_name)
        return posting

    def release(self, hold: Hold, at: datetime, state: State = State.RELEASED) -> None:
        """Gives back all that was held."""
        self.reserved -= hold.amount
        draws, ended = self._give_back(hold.draws, hold.amount, at)
        self.post(Kind.RELEASE, hold.amount, at, draws, reservation_id=hold.id)
        self._retire_all(ended, at)
        self._resolve(hold, state, at)

    def returnable(self, hold: Hold, at: datetime) -> int:
        """Returns how many credits more there would be to spend after a release."""
        ended = {grant.id for grant in self.grants if self._end_of(grant, at) is not None}
        return sum(draw.amount for draw in hold.draws if draw.grant_id not in ended)

    def keep(self, hold: Hold) -> Hold:
        """Takes in a hold as it is now, to be written."""
        self.holds[hold.id] = self.changed_holds[hold.id] = hold
        return hold

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
        giver = grant.granted_by
        self.post(Kind.GRANT, grant.terms.amount, at, draws, grant_id=grant.id, actor=giver)

    def retire(self, grant: Grant, kind: Kind, at: datetime) -> None:
        """Takes away what is left of a grant, for it expires or is voided."""
        lost = grant.remaining
        if kind is Kind.VOID:
            grant.voided_at = grant.voided_at or at
        self.draw(grant, lost)
        if lost and grant.activated_at is not None:
            self.granted -= lost
            self.post(kind, -lost, at, (Draw(grant.id, lost),), grant_id=grant.id)

    def close(self, at: datetime) -> None:
        """Ends the account for good; whatever its grants have left is voided."""
        for grant in self.grants:
            self.retire(grant, Kind.VOID, at)
        self.closed_at = at
        # What is held still comes back, or is used by the call it is held for.
        self.due_at = self.due_at if self.reserved else None
        self.standing.forget()

    def overdue(self, now: datetime) -> bool:
        """Tells whether something of the account has begun, is over or is to be granted."""
        if self.due_at is not None and self.due_at <= now:
            return True
        return self.closed_at is None and self.standing.owed(now)

    def mature(self, now: datetime) -> None:
        """Lets begin and expire what has by now, holds too, in the order of their times."""
        if self.closed_at is None and self.standing.owed(now):
            # Entries rise with time: nothing may have been written since the month began.
            began = self.standing.month_began(now)
            at = began if self.due_at is not None and self.due_at <= began else now
            self._mature_by(at)
            self.grant_allowance(at)
        self._mature_by(now)
        allowance = self.standing.refills_at if self.closed_at is None else None
        grants = (grant.due() for grant in self.grants)
        self.due_at = earliest([allowance, self.next_hold_at, *grants])

    def grant_allowance(self, at: datetime) -> None:
        """Grants what is missing of the current month's allowance."""
        terms = self.standing.grant(at)
        if terms is not None:
            grant = Grant(self.new_id(), self.user_id, terms, terms.amount, at, at)
            self.granted_now.append(grant)
            self.add(grant, at)

    def _mature_by(self, now: datetime) -> None:
        holds = deque(self._over(now))
        while True:
            due = self._next_due(now)
            if holds and (due is None or holds[0].expires_at <= due[0]):
                hold = holds.popleft()
                self.release(hold, hold.expires_at, State.EXPIRED)
            elif due is None:
                break
            else:
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
        actor: str | None = None,
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
            actor or self.actor,
            self.note,
        )
        self.postings.append(posting)
        return posting

    def _give_back(
        self, draws: Sequence[Draw], amount: int, at: datetime
    ) -> tuple[tuple[Draw, ...], list[tuple[Grant, Kind]]]:
        """
        Gives credits back to the grants they came from, those that burn last first.

        Debt is paid from them. Returns the draws, and the grants that have ended by now
        and must not keep what came back, with the reason.
        """
        back: list[Draw] = []
        ended: list[tuple[Grant, Kind]] = []
        for drawn in reversed(draws):
            share = min(amount, drawn.amount)
            if share == 0:
                break
            amount -= share
            grant = next(grant for grant in self.grants if grant.id == drawn.grant_id)
            kind = self._end_of(grant, at)
            if kind is None:
                paid = min(self.debt, share)
                self.debt -= paid
                share -= paid
                self.due_at = earliest([self.due_at, grant.terms.expires_at])
            else:
                ended.append((grant, kind))
            if share:
                self.draw(grant, -share)
                back.append(Draw(grant.id, -share))
        return tuple(back), ended

    def _end_of(self, grant: Grant, at: datetime) -> Kind | None:
        if self.closed_at is not None or grant.voided_at is not None:
            return Kind.VOID
        expires_at = grant.terms.expires_at
        return Kind.EXPIRE if expires_at is not None and expires_at <= at else None

    def _retire_all(self, ended: Iterable[tuple[Grant, Kind]], at: datetime) -> None:
        for grant, kind in ended:
            self.retire(grant, kind, at)

    def _resolve(
        self,
        hold: Hold,
        state: State,
        at: datetime,
        *,
        committed: int | None = None,
        tool_name: str | None = None,
    ) -> None:
        self.keep(
            hold._replace(
                state=state,
                committed=committed,
                committed_tool=tool_name,
                resolved_at=at,
                resolved_available=self.available,
            )
        )

    def _over(self, now: datetime) -> Sequence[Hold]:
        over = (h for h in self.holds.values() if h.state is State.OPEN and h.expires_at <= now)
        return sorted(over, key=lambda hold: (hold.expires_at, hold.id))

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
