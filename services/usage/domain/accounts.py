"""What an account is, and the entries its ledger knows."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID


class Kind(StrEnum):
    """Why a balance changed; the values of credit_entries.kind."""

    GRANT = "grant"
    USE = "use"
    RESERVE = "reserve"
    COMMIT = "commit"
    RELEASE = "release"
    EXPIRE = "expire"
    VOID = "void"
    ADJUST = "adjust"
    REVERSE = "reverse"
    LIMIT = "limit"


class Draw(NamedTuple):
    """Credits taken from one grant; given back to it if negative."""

    grant_id: UUID
    amount: int


class Posting(NamedTuple):
    """One entry of an account's ledger: what changed its balance, and by which grants."""

    id: UUID
    kind: Kind
    amount: int
    """Credits by which the balance grew."""
    balance_after: int
    version: int
    at: datetime
    draws: tuple[Draw, ...] = ()
    """A use that no grant covers has draws of less than its amount: the rest is debt."""
    grant_id: UUID | None = None
    reservation_id: UUID | None = None
    reverses_id: UUID | None = None
    actor: str | None = None
    """Who did it, where it was no tool call and no clock, e.g. "service:billing"."""
    note: str | None = None
    """Why, in the actor's words."""


@dataclass(frozen=True, slots=True)
class Balance:
    """An account at one instant."""

    user_id: UUID
    granted: int
    used: int
    reserved: int
    overdraft_limit: int
    version: int
    closed_at: datetime | None = None
    """When the user was erased; nothing is granted or spent from then on."""
    due_at: datetime | None = None
    """No later than when a grant begins or expires, or a hold is over."""

    @property
    def available(self) -> int:
        return self.granted - self.used - self.reserved
