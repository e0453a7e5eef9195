"""
A flush without locks: accounts as they are, then what was used of them, if they still are so.

Optimistic concurrency control (decision 27): the write rests on each account's xmin, which is the
transaction that wrote its row last. Whatever changes an account or its grants writes that row too,
so the same xmin says that nothing did. So it is with what holds for a role and the xmins of the
roles. A write gives its accounts their new xmin: they need not be read before the next one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NamedTuple
from uuid import UUID

from chassis.columns import arrays, column, columns
from chassis.ids import uuid7s
from chassis.postgres import Connection
from services.usage.domain.accounts import Draw, Posting
from services.usage.domain.book import Book
from services.usage.domain.metering import Event
from services.usage.domain.standing import Role
from services.usage.store.accounts import BOOK, book_of, in_burn_order
from services.usage.store.grants import GRANT, GRANT_COLUMNS, grant_of, open_grants_of
from services.usage.store.metering import event_columns, record_events


@dataclass(slots=True)
class Seen:
    """An account as it was read or written last, and what says whether it still is so."""

    book: Book
    xmin: int
    roles: str
    """The xmins of the roles."""
    at: datetime

    def written(self, xid: int, now: datetime) -> None:
        """Takes the account for what a transaction has just written of it."""
        self.xmin, self.at = xid, now
        self.book.postings, self.book.changed = [], {}


async def read_books(conn: Connection, user_ids: Iterable[UUID], now: datetime) -> dict[UUID, Seen]:
    """Returns the accounts there are, with nothing matured."""
    seen: dict[UUID, Seen] = {}
    new_id = partial(next, uuid7s(now))
    for row in await conn.fetch(_READ, column(user_ids)):
        user_id = row["user_id"]
        if user_id not in seen:
            seen[user_id] = Seen(book_of(row, new_id), row["xmin"], row["roles"], now)
        if row["id"] is not None:
            seen[user_id].book.grants.append(grant_of(row[:GRANT_COLUMNS]))
    in_burn_order(each.book for each in seen.values())
    return seen


_ROLES = (
    "(SELECT string_agg(xmin::text, ' ' ORDER BY role) FROM usage_roles"
    f" WHERE role = ANY ('{{{','.join(Role)}}}'))"
)
# A row for each grant, or one for an account that has none open. Of the two columns named user_id
# the last one is found by its name: the account's.
_READ = f"""
SELECT {GRANT}, {BOOK}, a.xmin, {_ROLES} AS roles FROM credit_accounts a
LEFT JOIN LATERAL ({open_grants_of("a.user_id")}) g ON true
WHERE a.user_id = ANY ($1::text::uuid[])
"""


async def write_use(
    conn: Connection,
    seen: Sequence[Seen],
    events: Sequence[Event],
    *,
    entry_of: Mapping[UUID, UUID],
    now: datetime,
) -> bool:
    """
    Writes the events and what they used of their accounts, or nothing and False.

    False where an account or a role has changed since it was seen or somebody holds an account's
    lock. `seen` are all the accounts of the events, those that paid nothing too, and go on as they
    were written; `entry_of` is, by user, the ledger entry that pays. UniqueViolationError for an
    event that is there; one that is just being written is waited for, as long as the connection
    waits for a lock.
    """
    roles = seen[0].roles
    if any(each.roles != roles for each in seen):
        return False
    books = [each.book for each in seen]
    grants = [grant for book in books for grant in book.changed.values()]
    postings = list(map(_paid, books))
    xid = await conn.fetchval(
        WRITE_USE,
        *event_columns(events, [entry_of.get(event.user_id) for event in events]),
        now,
        column(each.xmin for each in seen),
        *columns(books, "user_id", "used", "debt", "version"),
        *columns(postings, "id", "amount", "balance_after"),
        arrays([draw.grant_id for draw in posting.draws] for posting in postings),
        arrays([draw.amount for draw in posting.draws] for posting in postings),
        *columns(grants, "id", "remaining"),
        len(books),
        roles,
    )
    if xid is None:
        return False
    for each in seen:
        each.written(xid, now)
    return True


class _Unpaid(NamedTuple):
    """Stands where an account has no entry."""

    id: None = None
    amount: None = None
    balance_after: None = None
    draws: tuple[Draw, ...] = ()


_NOTHING_PAID = _Unpaid()


def _paid(book: Book) -> Posting | _Unpaid:
    # One at most: whoever decides a flush spends once for all calls of an account.
    (posting,) = book.postings or (_NOTHING_PAID,)
    return posting


# No account is waited for, so no order of the locks is needed. Where a row is does not change while
# it is locked: to find it there is cheaper than by its index again.
WRITE_USE = f"""
WITH held AS (
    SELECT s.user_id, s.used, s.debt, s.version, s.entry_id, s.amount, s.balance_after, s.grants,
        s.drawn, a.ctid AS place
    FROM unnest(
        $8::text::xid[], $9::text::uuid[], $10::text::bigint[], $11::text::bigint[],
        $12::text::bigint[], $13::text::uuid[], $14::text::bigint[], $15::text::bigint[],
        $16::text::text[], $17::text::text[]
    ) AS s (seen, user_id, used, debt, version, entry_id, amount, balance_after, grants, drawn)
    JOIN credit_accounts a ON a.user_id = ANY (ARRAY[s.user_id]) AND a.xmin = s.seen
    FOR NO KEY UPDATE OF a SKIP LOCKED
), all_held AS (
    SELECT WHERE (SELECT count(*) FROM held) = $20 AND {_ROLES} = $21
), account AS (
    UPDATE credit_accounts a
    SET used = h.used, debt = h.debt, version = h.version, updated_at = $7
    FROM all_held, held h
    WHERE a.ctid = h.place
), drawn AS (
    UPDATE credit_grants g
    SET remaining = s.remaining,
        depleted_at = CASE WHEN s.remaining = 0 THEN coalesce(g.depleted_at, $7) END
    FROM all_held, unnest($18::text::uuid[], $19::text::bigint[]) AS s (id, remaining)
    WHERE g.id = ANY (ARRAY[s.id])
), entries AS (
    INSERT INTO credit_entries (
        user_id, id, amount, balance_after, version, grant_ids, drawn, kind, created_at
    )
    SELECT user_id, entry_id, amount, balance_after, version, grants::uuid[], drawn::bigint[],
        'use', $7
    FROM all_held, held
    WHERE entry_id IS NOT NULL
), {record_events("all_held,")}
SELECT pg_current_xact_id()::xid FROM all_held
"""
