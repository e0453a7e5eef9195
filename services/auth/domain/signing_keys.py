"""Which key signs when: a plan every replica knows before it comes true."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

# Beyond the last token's end: clocks differ, and a replica may sign a moment late.
MARGIN = timedelta(seconds=60)


class KeyState(StrEnum):
    """What a key does now."""

    WAITS = "waits"
    """Published, so that every cache of the keys has it before it signs."""
    SIGNS = "signs"
    VERIFIES = "verifies"
    """Signs no more, but tokens it signed still live."""
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """When a key does what."""

    kid: str
    activates_at: datetime
    retired_at: datetime | None = None
    """When its successor signs; None while it has none."""
    expires_at: datetime | None = None
    """When it is published no more."""

    def state(self, now: datetime) -> KeyState:
        # First: a key may be withdrawn before it ever signs.
        if self.expires_at is not None and self.expires_at <= now:
            return KeyState.WITHDRAWN
        if self.activates_at > now:
            return KeyState.WAITS
        if self.retired_at is None or self.retired_at > now:
            return KeyState.SIGNS
        return KeyState.VERIFIES


def signing_key(plans: Sequence[KeyPlan], now: datetime) -> KeyPlan:
    """Returns the key that signs: the newest whose time has come, or else the oldest."""
    oldest_first = sorted(plans, key=lambda plan: (plan.activates_at, plan.retired_at is None))
    active = [plan for plan in oldest_first if plan.activates_at <= now]
    return active[-1] if active else oldest_first[0]


def last_needed(retired_at: datetime, access_token: timedelta) -> datetime:
    """Returns when no token of a key retired then can be good any more."""
    return retired_at + access_token + MARGIN
