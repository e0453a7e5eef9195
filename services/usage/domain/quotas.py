"""Quotas: which of them hold for a call, what is used of them, and what a call exceeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from services.usage.domain.calendar import Window, end_of, period_of
from services.usage.domain.standing import Role

EVERY_TOOL = "*"
WINDOWS = tuple(Window)


class Unit(StrEnum):
    """What a quota limits."""

    CALLS = "calls"
    CREDITS = "credits"


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose quota it is: one user's, or that of every user of a role."""

    user_id: UUID | None = None
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """What may be used of a tool in each window; at least one of its limits is set."""

    scope: Scope
    tool_name: str
    window: Window
    max_calls: int | None
    max_credits: int | None
    updated_at: datetime

    @property
    def rank(self) -> tuple[bool, bool]:
        """How specific its scope is: the least holds."""
        return self.scope.user_id is None, self.tool_name == EVERY_TOOL


class Exceeded(NamedTuple):
    """What a call would exceed."""

    tool_name: str
    window: Window
    unit: Unit
    limit: int
    used: int
    resets_at: datetime

    def told(self) -> dict[str, str]:
        """Returns what a product needs to show; times as RFC 3339 has them."""
        return {
            "tool": self.tool_name,
            "window": self.window.name,
            "unit": self.unit.value,
            "limit": str(self.limit),
            "used": str(self.used),
            "resets_at": self.resets_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        }


@dataclass(slots=True)
class Counter:
    """What was admitted in the newest window of its kind."""

    user_id: UUID
    tool_name: str
    window: Window
    period: str
    calls: int = 0
    credits: int = 0


@dataclass(slots=True)
class Limits:
    """The quotas of one account with their counters, at one instant."""

    user_id: UUID
    time_zone: str
    now: datetime
    quotas: Sequence[Quota]
    counters: Mapping[tuple[str, Window], Counter] = field(default_factory=dict)
    """The newest ones there are, over or not."""
    changed: dict[tuple[str, Window], Counter] = field(default_factory=dict)
    """Counters to be written."""
    _effective: dict[str, Sequence[Quota]] = field(default_factory=dict)
    _current: dict[tuple[str, Window], Counter] = field(default_factory=dict)

    def effective(self, tool_name: str) -> Sequence[Quota]:
        """Returns the quotas that hold for a tool: all those of the most specific scope."""
        found = self._effective.get(tool_name)
        if found is None:
            found = self._effective[tool_name] = most_specific(self.quotas, tool_name)
        return found

    def exceeded(self, tool_name: str, cost: int) -> Exceeded | None:
        """Returns what a call would exceed; of several, what resets last."""
        found: Exceeded | None = None
        for quota in self.effective(tool_name):
            over = self._over(quota, cost)
            if over and (found is None or over.resets_at > found.resets_at):
                found = over
        return found

    def count(self, tool_name: str, cost: int) -> None:
        """Counts a call that is admitted."""
        for quota in self.effective(tool_name):
            counter = self.counter(quota)
            counter.calls += 1
            counter.credits += cost
            self.changed[quota.tool_name, quota.window] = counter

    def counter(self, quota: Quota) -> Counter:
        """Returns what is used of a quota in the current window."""
        key = (quota.tool_name, quota.window)
        current = self._current.get(key)
        if current is None:
            current = self._current[key] = self._begun(quota)
        return current

    def resets_at(self, quota: Quota) -> datetime:
        """Returns when the current window of a quota ends."""
        return end_of(quota.window, self.counter(quota).period, self.time_zone)

    def _begun(self, quota: Quota) -> Counter:
        period = period_of(quota.window, self.now, self.time_zone)
        newest = self.counters.get((quota.tool_name, quota.window))
        # A window that has begun goes on even where it has yet to begin by another time zone.
        if newest is not None and newest.period >= period:
            return newest
        return Counter(self.user_id, quota.tool_name, quota.window, period)

    def _over(self, quota: Quota, cost: int) -> Exceeded | None:
        counter = self.counter(quota)
        if quota.max_calls is not None and counter.calls + 1 > quota.max_calls:
            unit, limit, used = Unit.CALLS, quota.max_calls, counter.calls
        elif quota.max_credits is not None and counter.credits + cost > quota.max_credits:
            unit, limit, used = Unit.CREDITS, quota.max_credits, counter.credits
        else:
            return None
        resets_at = self.resets_at(quota)
        return Exceeded(quota.tool_name, quota.window, unit, limit, used, resets_at)


def most_specific(quotas: Iterable[Quota], tool_name: str) -> Sequence[Quota]:
    """
    Returns the quotas that hold for a tool, the shortest window first.

    (user, tool) before (user, *) before (role, tool) before (role, *).
    """
    fitting = [quota for quota in quotas if quota.tool_name in (tool_name, EVERY_TOOL)]
    least = min((quota.rank for quota in fitting), default=None)
    holding = [quota for quota in fitting if quota.rank == least]
    return sorted(holding, key=lambda quota: WINDOWS.index(quota.window))


def in_force(quotas: Iterable[Quota]) -> Sequence[Quota]:
    """Returns each quota that holds for some tool, by tool ("*" first) and window."""
    every = list(quotas)
    tools = sorted({EVERY_TOOL, *(quota.tool_name for quota in every)})
    holding = [quota for tool in tools for quota in most_specific(every, tool)]
    return list(dict.fromkeys(holding))
