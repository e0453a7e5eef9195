"""
Accounts as the last flush left them, so that the next one need not read them.

Nothing rests on this being right: what a flush writes is written only if its accounts still are
what it knows of them (store/optimistic.py), and what it refuses is decided from what it reads.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from chassis.ids import uuid7s
from services.usage.store.optimistic import Seen

# Accounts a process remembers, some 2 KiB each; forgetting one costs a query.
MOST_REMEMBERED = 10_000
# An account with more open grants than this is not kept.
MOST_GRANTS = 16
# Far less than PostgreSQL takes to use the number of a transaction again; and as long is an account
# read that somebody else was found to write.
REMEMBERED_FOR = timedelta(minutes=1)
# After an account had changed: whoever writes the same accounts as we do goes on doing so.
READING_FLUSHES = 16


class Remembered:
    """The accounts one process wrote last, the oldest first."""

    def __init__(self) -> None:
        self._seen: dict[UUID, Seen] = {}
        self._shared: dict[UUID, datetime] = {}
        self._reading = 0

    def take(self, user_ids: Iterable[UUID], now: datetime) -> dict[UUID, Seen]:
        """Takes out what is known of these accounts; nothing for a while after `mistaken`."""
        taken = [self._seen.pop(user_id, None) for user_id in user_ids]
        if self._reading:
            self._reading -= 1
            return {}
        oldest, new_id = now - REMEMBERED_FOR, partial(next, uuid7s(now))
        known = {seen.book.user_id: seen for seen in taken if seen and seen.at > oldest}
        for seen in known.values():
            seen.book.new_id = new_id
        return known

    def keep(self, accounts: Iterable[Seen]) -> None:
        """Takes in accounts as they were read or written just now."""
        for seen in accounts:
            user_id = seen.book.user_id
            shared = self._shared.get(user_id, seen.at) > seen.at
            if not shared and len(seen.book.grants) <= MOST_GRANTS:
                self._seen[user_id] = seen
        while len(self._seen) > MOST_REMEMBERED:
            del self._seen[next(iter(self._seen))]

    def mistaken(self) -> None:
        """Says that a flush was written in vain by what is remembered: the next ones read."""
        self._reading = READING_FLUSHES

    def compare(self, known: Mapping[UUID, Seen], read: Mapping[UUID, Seen]) -> None:
        """Finds accounts that somebody else writes too: they are read for a while."""
        for user_id, seen in read.items():
            if user_id in known and known[user_id].xmin != seen.xmin:
                self._shared[user_id] = seen.at + REMEMBERED_FOR
        if len(self._shared) > MOST_REMEMBERED:
            self._shared.clear()
