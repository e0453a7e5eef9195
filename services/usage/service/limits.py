"""The quotas of locked accounts, for whatever admits a call."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import datetime
from uuid import UUID

from chassis.postgres import Connection
from services.usage.domain.book import Book
from services.usage.domain.calendar import Window
from services.usage.domain.quotas import Counter, Limits, Quota
from services.usage.domain.standing import Role
from services.usage.store import quotas as store


async def load_limits(
    conn: Connection,
    books: Mapping[UUID, Book],
    now: datetime,
    tools: Collection[str] | None = None,
) -> dict[UUID, Limits]:
    """
    Returns the limits of those accounts that may have quotas, for some tools or for any.

    No statement runs for accounts that have none. Who holds the accounts' locks may count
    and write what is counted.
    """
    limited = {
        user_id: book
        for user_id, book in books.items()
        if book.standing.limited and book.closed_at is None
    }
    if not limited:
        return {}
    users = list(limited)
    wanted = None if tools is None else sorted(tools)
    roles = {book.standing.role for book in limited.values()}
    of_user: dict[UUID, list[Quota]] = defaultdict(list)
    of_role: dict[Role, list[Quota]] = defaultdict(list)
    for quota in await store.find_quotas(conn, users, roles, wanted):
        if quota.scope.user_id is not None:
            of_user[quota.scope.user_id].append(quota)
        elif quota.scope.role is not None:
            of_role[quota.scope.role].append(quota)
    counters: dict[UUID, dict[tuple[str, Window], Counter]] = defaultdict(dict)
    for counter in await store.find_counters(conn, users, wanted):
        counters[counter.user_id][counter.tool_name, counter.window] = counter
    return {
        user_id: Limits(
            user_id,
            book.standing.time_zone,
            now,
            [*of_user[user_id], *of_role[book.standing.role]],
            counters[user_id],
        )
        for user_id, book in limited.items()
    }


async def write_limits(conn: Connection, limits: Mapping[UUID, Limits]) -> None:
    """Writes what was counted, in the transaction that admits the calls."""
    counted = [counter for limit in limits.values() for counter in limit.changed.values()]
    if counted:
        await store.write_counters(conn, counted)
