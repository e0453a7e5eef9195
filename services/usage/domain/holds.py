"""Holds: credits that are kept for a call while it runs."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from services.usage.domain.accounts import Draw

# A resolution that is asked for again is answered as the first time for so long at least.
ANSWERED_AGAIN = timedelta(hours=72)


class State(StrEnum):
    """What became of a hold; the values of credit_reservations.state."""

    OPEN = "open"
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"


# A tuple, because a flush makes thousands of them.
class Hold(NamedTuple):
    """Credits taken from grants and not used yet; resolved once."""

    id: UUID
    user_id: UUID
    amount: int
    tool_name: str
    """What the credits are for; empty for a lease."""
    created_at: datetime
    first_expires_at: datetime
    """Its end as it was asked for."""
    expires_at: datetime
    draws: tuple[Draw, ...] = ()
    """They cover the whole amount: nothing is held on overdraft."""
    available: int = 0
    """What was left to spend when it was made."""
    state: State = State.OPEN
    committed: int | None = None
    """Credits that were used in the end."""
    committed_tool: str | None = None
    """What they were used for, if it is something else."""
    resolved_at: datetime | None = None
    resolved_available: int | None = None
    holder: str = ""
    """Who burns a lease's credits; empty for a reservation."""
    fence: int = 0
    """A lease's place among those of its holder."""

    def as_made(self) -> "Hold":
        """Returns it as it was when it was made."""
        return self._replace(
            expires_at=self.first_expires_at,
            state=State.OPEN,
            committed=None,
            committed_tool=None,
            resolved_at=None,
            resolved_available=None,
        )
