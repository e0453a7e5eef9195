"""Credit accounts and their ledger: the one way to lock them and to write what was locked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from uuid import UUID

from asyncpg import Record

from chassis.columns import arrays, column, columns, microseconds, texts
from chassis.ids import uuid7s
from chassis.postgres import Connection, on_constraint
from services.usage.domain.accounts import Balance
from services.usage.domain.book import Book
from services.usage.domain.holds import Hold
from services.usage.domain.standing import Role
from services.usage.errors import BalanceLimit, UserNotFound
from services.usage.store.grants import find_grants, insert_grants, open_grants
from services.usage.store.reservations import holds_over, next_ends, write_holds
from services.usage.store.standings import read_standing, write_standings

_BALANCE = "a.user_id, granted, used, reserved, overdraft_limit, version, closed_at, due_at"
# What holds for the role is read with the row: a join would miss a role that changes meanwhile. A
# query for each role runs once a statement, one that names the row's would run for every row.
_OF_ROLE = ", ".join(
    "CASE role"
    + "".join(
        f" WHEN '{role}' THEN (SELECT {column} FROM usage_roles WHERE role = '{role}')"
        for role in Role
    )
    + f" END AS {name}"
    for column, name in (("allowance", "allowance"), ("quotas", "role_quotas"))
)
BOOK = (
    f"{_BALANCE}, debt, role, role_sequence, time_zone, quotas, allowance_until,"
    f" allowance_granted, {_OF_ROLE}"
)
# Rows that refer to an account may still come meanwhile.
LOCK = "FOR NO KEY UPDATE"


async def open_account(conn: Connection, user_id: UUID, now: datetime) -> None:
    """Opens an account unless it is open; UserNotFound if there is no such user."""
    with on_constraint("credit_accounts_user_id_fkey", UserNotFound):
        await conn.execute(
            "INSERT INTO credit_accounts (user_id, created_at, updated_at) VALUES ($1, $2, $2)"
            " ON CONFLICT (user_id) DO NOTHING",
            user_id,
            now,
        )


async def get_balances(conn: Connection, user_ids: Sequence[UUID]) -> dict[UUID, Balance]:
    """Returns the accounts there are."""
    rows = await conn.fetch(
        f"SELECT {_BALANCE} FROM credit_accounts a WHERE user_id = ANY($1::uuid[])", user_ids
    )
    return {row["user_id"]: _balance(row) for row in rows}


async def lock_books(conn: Connection, user_ids: Iterable[UUID], now: datetime) -> dict[UUID, Book]:
    """
    Locks accounts in one order everywhere, for unsorted batches deadlock at once.

    Returns those that are open or closed, with what has begun or expired by now.
    """
    return await _books(conn, list(user_ids), now, LOCK)


async def read_book(conn: Connection, user_id: UUID, now: datetime) -> Book | None:
    """Returns an account as whoever locked it now would find it; not to be written."""
    return (await _books(conn, [user_id], now, "")).get(user_id)


async def only_read(conn: Connection) -> None:
    """Makes the transaction that has just begun one picture, in which nothing is written."""
    await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


async def lock_free_books(
    conn: Connection, user_ids: Iterable[UUID], now: datetime
) -> tuple[dict[UUID, Book], dict[UUID, Balance]]:
    """Locks the accounts nobody else holds; returns them, and the others as they stand."""
    users = list(user_ids)
    free = await _books(conn, users, now, f"{LOCK} SKIP LOCKED")
    opened = await get_balances(conn, users)
    return free, {user_id: each for user_id, each in opened.items() if user_id not in free}


async def add_drawn(conn: Connection, books: Mapping[UUID, Book], holds: Iterable[Hold]) -> None:
    """Adds the grants to books that their holds drew from: credits may go back there."""
    missing = {
        draw.grant_id
        for hold in holds
        if (book := books.get(hold.user_id)) is not None
        for draw in hold.draws
        if all(grant.id != draw.grant_id for grant in book.grants)
    }
    for grant in await find_grants(conn, list(missing)) if missing else ():
        books[grant.user_id].grants.append(grant)
        books[grant.user_id].grants.sort(key=lambda each: each.burn_order)


async def write_books(conn: Connection, books: Iterable[Book], now: datetime) -> None:
    """
    Writes what changed in locked accounts: account, entries and grants, in one statement.

    Holds follow in one of their own. BalanceLimit past 10^15 credits.
    """
    written = list(books)
    await insert_grants(conn, [grant for book in written for grant in book.granted_now])
    await write_standings(conn, [book for book in written if book.standing.changed])
    postings = [posting for book in written for posting in book.postings]
    grants = [grant for book in written for grant in book.changed.values()]
    with on_constraint("credit_accounts_granted_max", BalanceLimit):
        await conn.execute(
            _WRITE_BOOKS,
            now,
            *columns(written, "user_id", "granted", "used", "reserved", "debt", "version"),
            *columns(written, "closed_at", "due_at"),
            *columns(grants, "id", "remaining", "voided_at"),
            microseconds(grant.activated_at for grant in grants),
            column(book.user_id for book in written for _ in book.postings),
            *columns(postings, "id", "amount", "balance_after", "version"),
            *columns(postings, "grant_id", "reservation_id", "reverses_id"),
            microseconds(posting.at for posting in postings),
            texts(posting.kind for posting in postings),
            texts(posting.actor for posting in postings),
            texts(posting.note for posting in postings),
            arrays([draw.grant_id for draw in posting.draws] for posting in postings),
            arrays([draw.amount for draw in posting.draws] for posting in postings),
        )
    if holds := [hold for book in written for hold in book.changed_holds.values()]:
        await write_holds(conn, holds, {made for book in written for made in book.new_holds})


_WRITE_BOOKS = """
WITH account AS (
    UPDATE credit_accounts a
    SET granted = s.granted, used = s.used, reserved = s.reserved, debt = s.debt,
        version = s.version, closed_at = s.closed_at, due_at = s.due_at, updated_at = $1
    FROM unnest(
        $2::text::uuid[], $3::text::bigint[], $4::text::bigint[], $5::text::bigint[],
        $6::text::bigint[], $7::text::bigint[], $8::text::timestamptz[], $9::text::timestamptz[]
    ) AS s (user_id, granted, used, reserved, debt, version, closed_at, due_at)
    WHERE a.user_id = ANY (ARRAY[s.user_id])
), drawn AS (
    UPDATE credit_grants g
    SET remaining = s.remaining, voided_at = s.voided_at,
        activated_at = to_timestamp(s.activated / 1e6::float8),
        depleted_at = CASE WHEN s.remaining = 0 THEN coalesce(g.depleted_at, $1) END
    FROM unnest(
        $10::text::uuid[], $11::text::bigint[], $12::text::timestamptz[], $13::text::bigint[]
    ) AS s (id, remaining, voided_at, activated)
    WHERE g.id = ANY (ARRAY[s.id])
)
INSERT INTO credit_entries (
    user_id, id, amount, balance_after, version, grant_id, reservation_id, reverses_id, created_at,
    kind, actor, note, grant_ids, drawn
)
SELECT user_id, id, amount, balance_after, version, grant_id, reservation_id, reverses_id,
    to_timestamp(at / 1e6::float8), kind, actor, note, grants::uuid[], drawn::bigint[]
FROM unnest(
    $14::text::uuid[], $15::text::uuid[], $16::text::bigint[], $17::text::bigint[],
    $18::text::bigint[], $19::text::uuid[], $20::text::uuid[], $21::text::uuid[],
    $22::text::bigint[], $23::text::text[], $24::text::text[], $25::text::text[],
    $26::text::text[], $27::text::text[]
) AS s (
    user_id, id, amount, balance_after, version, grant_id, reservation_id, reverses_id, at,
    kind, actor, note, grants, drawn
)
"""


async def _books(
    conn: Connection, user_ids: Sequence[UUID], now: datetime, lock: str
) -> dict[UUID, Book]:
    rows = await conn.fetch(
        f"SELECT {BOOK} FROM credit_accounts a WHERE user_id = ANY($1::text::uuid[])"
        f" ORDER BY user_id {lock}",
        column(user_ids),
    )
    new_id = partial(next, uuid7s(now))
    books = {row["user_id"]: book_of(row, new_id) for row in rows}
    await _fill(conn, books)
    due = [book for book in books.values() if book.overdue(now)]
    if held := [book.user_id for book in due if book.reserved]:
        await _fill_holds(conn, books, held, now)
    for book in due:
        book.mature(now)
    return books


async def _fill_holds(
    conn: Connection, books: Mapping[UUID, Book], held: Sequence[UUID], now: datetime
) -> None:
    over = await holds_over(conn, held, now)
    await add_drawn(conn, books, over)
    for hold in over:
        books[hold.user_id].holds[hold.id] = hold
    for user_id, at in (await next_ends(conn, held, now)).items():
        books[user_id].next_hold_at = at


async def _fill(conn: Connection, books: Mapping[UUID, Book]) -> None:
    for grant in await open_grants(conn, list(books)):
        books[grant.user_id].grants.append(grant)
    in_burn_order(books.values())


def in_burn_order(books: Iterable[Book]) -> None:
    """Puts the grants of books that were just read into their order."""
    for book in books:
        if len(book.grants) > 1:
            book.grants.sort(key=lambda grant: grant.burn_order)


def book_of(row: Record, new_id: Callable[[], UUID]) -> Book:
    """Returns the account of a row that has the columns of BOOK; without its grants."""
    return Book(
        row["user_id"],
        row["granted"],
        row["used"],
        row["reserved"],
        row["debt"],
        row["overdraft_limit"],
        row["version"],
        row["closed_at"],
        row["due_at"],
        new_id,
        standing=read_standing(row),
    )


def _balance(row: Record) -> Balance:
    return Balance(*row)
