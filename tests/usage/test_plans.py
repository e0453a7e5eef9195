"""What PostgreSQL plans for the room's statements before it has seen a single row."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from chassis.ids import uuid7
from chassis.postgres import Connection, Database, open_database
from services.usage.domain.calendar import Window
from services.usage.domain.quotas import EVERY_TOOL, Scope
from services.usage.service.ledger import Act
from services.usage.store import PLANNER
from tests.factories import make_account, make_event, open_usage
from tests.fakes import FakeClock
from tests.usage.holding import TTL, a_commit, reserve

_LEADING = """
SELECT i.indexrelid::regclass::text AS name, a.attname AS leading
FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
"""


@pytest.fixture
async def alone(database_url: str) -> AsyncIterator[Database]:
    """The database through one connection, which then knows every statement."""
    url = f"{database_url}&connection_limit=1"
    async with open_database(
        url, role="finity_usage", application="test", settings=PLANNER
    ) as database:
        yield database


@dataclass(frozen=True)
class Scan:
    """How one table is read."""

    kind: str
    table: str
    index: str
    condition: str


async def scans_of(conn: Connection, some_id: UUID) -> list[Scan]:
    """Returns the scans in the plans of all statements that the connection has prepared."""
    prepared = await conn.fetch(
        "SELECT name, parameter_types::text[] AS types FROM pg_prepared_statements"
        r" WHERE statement ~ '^\s*(SELECT|INSERT|UPDATE|DELETE|WITH)'"
        " AND statement !~ 'pg_(catalog|prepared|type|stat)'"
    )
    found: list[Scan] = []
    for name, types in prepared:
        # Months without the id would be left out.
        values = ", ".join(f"'{some_id}'" if each == "uuid" else "NULL" for each in types)
        explained = await conn.fetchval(
            f'EXPLAIN (FORMAT JSON) EXECUTE "{name}"{f"({values})" if values else ""}'
        )
        found += _scans(json.loads(explained)[0]["Plan"])
    return found


def _scans(node: dict[str, Any]) -> Iterator[Scan]:
    written = node["Node Type"] == "ModifyTable"
    if not written and ("Relation Name" in node or "Index Name" in node):
        index, condition = node.get("Index Name", ""), node.get("Index Cond", "")
        yield Scan(node["Node Type"], node.get("Relation Name", ""), index, condition)
    for child in node.get("Plans", ()):
        yield from _scans(child)


async def test_statements_planned_before_the_first_row_use_the_right_index(
    alone: Database, owner: Connection, clock: FakeClock
) -> None:
    """
    Every table is read by an index whose first column is known: never from end to end.

    A plan is kept until the next ANALYZE; the tables it was made for may long be full by then.
    """
    user_id = await make_account(owner, clock, credits=1000)
    await owner.execute("VACUUM ANALYZE")  # Now it knows that there are none.
    async with open_usage(alone, clock) as usage:
        await usage.quotas.set_quota(
            Scope(user_id=user_id), EVERY_TOOL, Window.DAY, max_calls=100, max_credits=None
        )
        free = make_event(await make_account(owner, clock, credits=1000), clock.now())
        for _ in range(2):  # Without locks and, as a duplicate, with them.
            await usage.metering.record([free])
        event = make_event(user_id, clock.now(), credits=2)
        await usage.metering.record([event])
        held = await reserve(usage, user_id, clock)
        await reserve(usage, user_id, clock)
        await usage.reservations.ask(a_commit(held, 1))
        clock.advance(seconds=TTL.total_seconds() + 1)
        await usage.metering.record([make_event(user_id, clock.now())])
        await usage.metering.list_usage(
            user_id=user_id, start=None, end=None, before=None, limit=10
        )
        await usage.ledger.correct_usage(user_id, 1, Act("test", "plans"), event_id=event.id)
        assert (await usage.proofs.verify_changed(None)).faults == []
        leading = dict(await owner.fetch(_LEADING))
        async with alone.connection() as conn:
            scans = await scans_of(conn, uuid7(clock.now()))
    kinds = {scan.kind for scan in scans}
    # By its place an account is found by one statement alone, the one of every flush.
    assert "Tid Scan" in kinds
    assert "Seq Scan" not in kinds
    for scan in scans:
        assert not scan.index or re.search(rf"\b{leading[scan.index]}\b", scan.condition), scan
    assert {re.sub(r"_\d{4}_\d\d$", "", scan.table) for scan in scans} >= {
        "credit_accounts",
        "credit_grants",
        "credit_reservations",
        "tool_usage",
        "usage_quotas",
        "usage_windows",
    }


async def test_the_guards_read_two_entries_an_account(
    alone: Database, owner: Connection, clock: FakeClock
) -> None:
    """Planned before the first entry they do not read them all, which no plan of ours shows."""
    await owner.execute("VACUUM ANALYZE")
    async with open_usage(alone, clock) as usage:
        async with alone.connection() as conn:
            # As a sweep of an empty house does: the guards run, and are planned, for no account.
            await conn.execute("UPDATE credit_accounts SET version = version")
            await conn.execute(
                "INSERT INTO credit_entries (id, user_id, kind, amount, balance_after, version,"
                " created_at) SELECT user_id, user_id, 'grant', 1, 1, 1, now()"
                " FROM credit_accounts WHERE false"
            )
        users = [await make_account(owner, clock, credits=100) for _ in range(20)]
        await usage.metering.record([make_event(user_id, clock.now()) for user_id in users])
        async with alone.connection() as conn:
            await conn.fetchval("SELECT pg_stat_force_next_flush()")
    scans, found = await owner.fetchrow(
        "SELECT idx_scan, idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'credit_entries'"
    )
    assert scans >= 2 * len(users)
    assert found <= scans
