"""How an account stands beside its credits: role, time zone, allowance, quotas."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from services.usage.domain.calendar import Window, begin_of, end_of, period_of
from services.usage.domain.grants import DEFAULT_PRIORITY, Category, Terms

NEVER_YET = datetime(1970, 1, 1, tzinfo=UTC)
# No caller can name it: a source on the wire has no colon.
ALLOWANCE = "finity:allowance"


class Role(StrEnum):
    """The role of an account's user; the values of credit_accounts.role."""

    FREE = "free"
    PRO = "pro"
    ADMIN = "admin"


@dataclass(slots=True)
class Standing:
    """What decides an account's limits; read and written under the account's lock."""

    role: Role = Role.FREE
    role_sequence: int = 0
    time_zone: str = "UTC"
    quotas: int = 0
    """How many the user itself has."""
    allowance_until: datetime = NEVER_YET
    """When the month ends for which an allowance was granted last."""
    allowance_granted: int = 0
    """Credits granted for that month."""
    allowance: int = 0
    """Credits a month for the role."""
    role_quotas: int = 0
    """How many the role has."""
    changed: bool = False
    """Whether it has to be written."""

    @property
    def limited(self) -> bool:
        """Whether there may be quotas for the account."""
        return self.quotas + self.role_quotas > 0

    @property
    def refills_at(self) -> datetime | None:
        """When the next allowance comes; None if none does."""
        return self.allowance_until if self.allowance else None

    def owed(self, now: datetime) -> bool:
        """Tells whether the current month's allowance is still to be granted."""
        return self.allowance > 0 and self.allowance_until <= now

    def month_began(self, now: datetime) -> datetime:
        """Returns the instant at which the current month began."""
        return begin_of(Window.MONTH, period_of(Window.MONTH, now, self.time_zone), self.time_zone)

    def grant(self, now: datetime) -> Terms | None:
        """
        Takes what is still to be granted for the current month; None if that is nothing.

        The first grant of a month has its name as source_ref, one that tops it up the
        total besides: both are unique for ever, whatever else should fail.
        """
        if self.allowance_until <= now:
            if self.allowance == 0:
                return None
            period = period_of(Window.MONTH, now, self.time_zone)
            self.allowance_until = end_of(Window.MONTH, period, self.time_zone)
            self.allowance_granted = 0
        amount = self.allowance - self.allowance_granted
        if amount <= 0:
            return None
        ref = self._period() if not self.allowance_granted else f"{self._period()}:{self.allowance}"
        self.allowance_granted = self.allowance
        self.changed = True
        return Terms(
            ALLOWANCE,
            ref,
            amount,
            DEFAULT_PRIORITY,
            Category.PROMOTIONAL,
            expires_at=self.allowance_until,
        )

    def change_role(self, role: Role, sequence: int, allowance: int, role_quotas: int) -> None:
        """Takes over a role with what it is granted and limited by."""
        self.role, self.role_sequence = role, sequence
        self.allowance, self.role_quotas = allowance, role_quotas
        self.changed = True

    def move(self, time_zone: str) -> None:
        """Moves to another time zone; the month whose allowance was granted stays the same."""
        period = self._period()
        self.time_zone = time_zone
        if self.allowance_until > NEVER_YET:
            self.allowance_until = end_of(Window.MONTH, period, time_zone)
        self.changed = True

    def forget(self) -> None:
        """Leaves nothing that tells of a person."""
        self.time_zone = "UTC"
        self.changed = True

    def _period(self) -> str:
        """Returns the name of the month for which an allowance was granted last."""
        instant = self.allowance_until - datetime.resolution
        return period_of(Window.MONTH, instant, self.time_zone)
