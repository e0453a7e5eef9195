"""
A flush without locks: accounts as they are, then what was used of them, if they still are so.

Optimistic concurrency control (decision 27): the write rests on each account's xmin, which is the
transaction that wrote its row last. Whatever changes an account or its grants writes that row too,
so the same xmin says that nothing did. What holds for a role is not in it: as with locks, a flush
goes by what it read.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from uuid import UUID

from chassis.columns import arrays, column, columns
from chassis.ids import uuid7s
from chassis.postgres import Connection
from services.usage.domain.book import Book
from services.usage.domain.metering import Event
from services.usage.store.accounts import BOOK, book_of, in_burn_order
from services.usage.store.grants import GRANT, GRANT_COLUMNS, grant_of, open_grants_of
from services.usage.store.metering import event_columns, record_events


async def read_books(
    conn: Connection, user_ids: Iterable[UUID], now: datetime
) -> tuple[dict[UUID, Book], dict[UUID, int]]:
    """Returns the accounts there are, with nothing matured, and each one's xmin."""
    books: dict[UUID, Book] = {}
    seen: dict[UUID, int] = {}
    new_id = partial(next, uuid7s(now))
    for row in await conn.fetch(_READ, column(user_ids)):
        user_id = row["user_id"]
        if user_id not in books:
            books[user_id], seen[user_id] = book_of(row, new_id), row["xmin"]
        if row["id"] is not None:
            books[user_id].grants.append(grant_of(row[:GRANT_COLUMNS]))
    in_burn_order(books.values())
    return books, seen


# A row for each grant, or one for an account that has none open. Of the two columns named user_id
# the last one is found by its name: the account's.
_READ = f"""
SELECT {GRANT}, {BOOK}, a.xmin FROM credit_accounts a
LEFT JOIN LATERAL ({open_grants_of("a.user_id")}) g ON true
WHERE a.user_id = ANY ($1::text::uuid[])
"""


async def write_use(
    conn: Connection,
    books: Sequence[Book],
    events: Sequence[Event],
    *,
    seen: Mapping[UUID, int],
    entry_of: Mapping[UUID, UUID],
    now: datetime,
) -> bool:
    """
    Writes the events and what they used of their accounts, or nothing and False.

    False where an account has changed since it was read or somebody holds its lock. `books` are
    all the accounts of the events, those that paid nothing too; `entry_of` is, by user, the ledger
    entry that pays. UniqueViolationError for an event that is there; one that is just being written
    is waited for, as long as the connection waits for a lock.
    """
    grants = [grant for book in books for grant in book.changed.values()]
    postings = [(book.user_id, posting) for book in books for posting in book.postings]
    written = await conn.fetchval(
        WRITE_USE,
        *event_columns(events, [entry_of.get(event.user_id) for event in events]),
        now,
        *columns(books, "user_id", "used", "debt", "version"),
        column(seen[book.user_id] for book in books),
        *columns(grants, "id", "remaining"),
        column(user_id for user_id, _ in postings),
        *columns([posting for _, posting in postings], "id", "amount", "balance_after", "version"),
        arrays([draw.grant_id for draw in posting.draws] for _, posting in postings),
        arrays([draw.amount for draw in posting.draws] for _, posting in postings),
        len(books),
    )
    return bool(written)


# No account is waited for, so no order of the locks is needed.
WRITE_USE = f"""
WITH held AS (
    SELECT a.user_id FROM unnest($13::text::uuid[], $17::text::xid[]) AS s (user_id, seen)
    JOIN credit_accounts a ON a.user_id = ANY (ARRAY[s.user_id]) AND a.xmin = s.seen
    FOR NO KEY UPDATE OF a SKIP LOCKED
), all_held AS (
    SELECT WHERE (SELECT count(*) FROM held) = $27
), account AS (
    UPDATE credit_accounts a
    SET used = s.used, debt = s.debt, version = s.version, updated_at = $12
    FROM all_held, unnest(
        $13::text::uuid[], $14::text::bigint[], $15::text::bigint[], $16::text::bigint[]
    ) AS s (user_id, used, debt, version)
    WHERE a.user_id = ANY (ARRAY[s.user_id])
), drawn AS (
    UPDATE credit_grants g
    SET remaining = s.remaining,
        depleted_at = CASE WHEN s.remaining = 0 THEN coalesce(g.depleted_at, $12) END
    FROM all_held, unnest($18::text::uuid[], $19::text::bigint[]) AS s (id, remaining)
    WHERE g.id = ANY (ARRAY[s.id])
), entries AS (
    INSERT INTO credit_entries (
        user_id, id, amount, balance_after, version, grant_ids, drawn, kind, created_at
    )
    SELECT user_id, id, amount, balance_after, version, grants::uuid[], drawn::bigint[], 'use', $12
    FROM all_held, unnest(
        $20::text::uuid[], $21::text::uuid[], $22::text::bigint[], $23::text::bigint[],
        $24::text::bigint[], $25::text::text[], $26::text::text[]
    ) AS s (user_id, id, amount, balance_after, version, grants, drawn)
), {record_events("all_held,")}
SELECT count(*) FROM all_held
"""
