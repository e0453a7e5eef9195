"""Grants: credits with their terms, and the order in which they burn."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

DEFAULT_PRIORITY = 50
NEVER = datetime.max.replace(tzinfo=UTC)
BurnOrder = tuple[int, datetime, bool, datetime, datetime, UUID]


class Category(StrEnum):
    """Whether credits were paid for; the values of credit_grants.category."""

    PROMOTIONAL = "promotional"
    PAID = "paid"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a grant is asked to be."""

    source: str
    source_ref: str
    amount: int
    priority: int
    category: Category
    effective_at: datetime | None = None
    """None: from when it is made."""
    expires_at: datetime | None = None
    """None: never."""


@dataclass(slots=True)
class Grant:
    """Credits with their terms, and what is left of them."""

    id: UUID
    user_id: UUID
    terms: Terms
    remaining: int
    created_at: datetime
    effective_at: datetime
    activated_at: datetime | None = None
    """When it began to count; None while it is a promise."""
    voided_at: datetime | None = None
    granted_by: str | None = None
    """Who gave it, e.g. "service:billing"."""

    @property
    def burn_order(self) -> BurnOrder:
        """Priority, expiry (none last), promotional before paid, effective, created, id."""
        terms = self.terms
        return (
            terms.priority,
            terms.expires_at or NEVER,
            terms.category is Category.PAID,
            self.effective_at,
            self.created_at,
            self.id,
        )

    def due(self) -> datetime | None:
        """Returns when it begins or, once it has, when what is left of it expires."""
        if self.activated_at is None:
            return None if self.voided_at else self.effective_at
        return self.terms.expires_at if self.remaining else None


def lapsed(grant: Grant, now: datetime) -> bool:
    """Tells whether a grant that is to be made would be over before it began."""
    expires_at = grant.terms.expires_at
    return expires_at is not None and expires_at <= max(now, grant.effective_at)
