"""Every database role and every table, as the catalogue has it, against what the design allows."""

from collections.abc import Iterator

import asyncpg
import pytest

from chassis.postgres import Database, open_database
from chassis.roles import owner_of, role_of
from tests.contracts.descriptors import ROOMS

PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
READ = {"SELECT"}
APPEND = {"SELECT", "INSERT"}
WRITE = {"SELECT", "INSERT", "UPDATE"}
ALL = {"SELECT", "INSERT", "UPDATE", "DELETE"}
# What the role of a room may do with the room's own tables. It may do nothing with any other.
EXPECTED: dict[str, dict[str, set[str]]] = {
    "auth": {
        "users": ALL,
        "admin_logs": APPEND,
        "admin_log_head": READ,
        "sessions": ALL,
        "signing_keys": ALL,
        "email_verifications": ALL,
        "reset_requests": ALL,
        "email_sign_ins": ALL,
        "email_requests": ALL,
        "chrome_auth_links": ALL,
        "oauth_identities": ALL,
        "oauth_flows": ALL,
        "mfa_totp": ALL,
        "mfa_recovery_codes": ALL,
        "passkeys": ALL,
        "mfa_challenges": ALL,
        "auth_outbox": APPEND,
        "auth_deliveries": WRITE,
        "auth_idempotency_keys": ALL,
    },
    "usage": {
        "credit_accounts": WRITE,
        "credit_grants": WRITE,
        "credit_entries": APPEND,
        "credit_reservations": WRITE,
        "credit_lease_holders": WRITE,
        "tool_usage": APPEND,
        "usage_rollups": WRITE,
        "usage_corrections": APPEND,
        "usage_idempotency_keys": ALL,
        "usage_verifications": WRITE,
        "usage_thresholds": APPEND,
        "usage_outbox": APPEND,
        "usage_deliveries": WRITE,
        "usage_roles": READ | {"UPDATE"},
        "usage_quotas": ALL,
        "usage_windows": WRITE,
    },
}
INSERT_ONLY = (
    "admin_logs",
    "tool_usage",
    "credit_entries",
    "usage_corrections",
    "auth_outbox",
    "usage_outbox",
    "usage_thresholds",
)
# Everybody may read how far the database is migrated: services ask at their start.
SHARED = {"finity_migrations": READ}


def expected() -> Iterator[tuple[str, str, str]]:
    """Yields role, table and privilege of everything that is allowed."""
    for room, tables in EXPECTED.items():
        for table, privileges in {**tables, **SHARED}.items():
            for privilege in privileges:
                yield role_of(room), table, privilege


async def tables_of(database: Database) -> dict[str, str]:
    """Returns every table of the schema, partitions included, with its owner."""
    async with database.connection() as conn:
        rows = await conn.fetch(
            "SELECT relname, pg_get_userbyid(relowner) AS owner FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')"
        )
    return {row["relname"]: row["owner"] for row in rows}


@pytest.fixture
async def partitioned(usage_database: Database) -> Database:
    """The migrated database with the partitions a running service makes."""
    async with usage_database.transaction() as conn:
        await conn.execute("SELECT usage_make_partitions(now(), now() + interval '6 months')")
    return usage_database


async def test_every_role_has_exactly_its_privileges(partitioned: Database) -> None:
    """Role by role and table by table the catalogue grants what the design allows, nothing more."""
    tables = await tables_of(partitioned)
    async with partitioned.connection() as conn:
        rows = await conn.fetch(
            "SELECT role, name, privilege"
            " FROM unnest($1::text[]) AS role, unnest($2::text[]) AS name,"
            " unnest($3::text[]) AS privilege"
            " WHERE has_table_privilege(role, quote_ident(name), privilege)",
            [role_of(room) for room in ROOMS],
            list(tables),
            PRIVILEGES,
        )
    found = {(row["role"], row["name"], row["privilege"]) for row in rows}
    assert found == set(expected())


async def test_no_column_is_granted_beside_the_tables(partitioned: Database) -> None:
    """The only grant on single columns is REFERENCES on users.id, to owners of other rooms."""
    async with partitioned.connection() as conn:
        rows = await conn.fetch(
            "SELECT c.relname, a.attname, pg_get_userbyid(g.grantee) AS grantee, g.privilege_type"
            " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid,"
            " LATERAL aclexplode(a.attacl) g WHERE c.relnamespace = 'public'::regnamespace"
        )
    found = {tuple(row.values()) for row in rows}
    allowed = {("users", "id", owner_of(room), "REFERENCES") for room in ROOMS if room != "auth"}
    assert found == allowed


async def test_every_table_is_owned_by_its_room(partitioned: Database) -> None:
    """Each table is expected of one room and belongs to that room's owner, partitions too."""
    owners = {table: owner_of(room) for room, tables in EXPECTED.items() for table in tables}
    found = await tables_of(partitioned)
    for table in [name for name in found if name.startswith("tool_usage_")]:
        assert found.pop(table) == owner_of("usage")
    del found["finity_migrations"]
    assert found == owners
    assert set(EXPECTED) == set(ROOMS)


async def test_ledgers_are_insert_only(partitioned: Database) -> None:
    """Ledgers, outboxes and the admin log are appended to: no role that serves edits or deletes."""
    async with partitioned.connection() as conn:
        edits = await conn.fetch(
            "SELECT role, name, privilege FROM unnest($1::text[]) AS role,"
            " unnest($2::text[]) AS name, unnest($3::text[]) AS privilege"
            " WHERE has_table_privilege(role, name, privilege)"
            "    OR (privilege = 'UPDATE' AND has_any_column_privilege(role, name, privilege))",
            [role_of(room) for room in ROOMS],
            list(INSERT_ONLY),
            ["UPDATE", "DELETE", "TRUNCATE"],
        )
    assert edits == []


async def test_no_role_logs_in_or_has_powers(partitioned: Database) -> None:
    """Owners and roles cannot log in, bypass row security, create roles or databases."""
    async with partitioned.connection() as conn:
        rows = await conn.fetch(
            "SELECT rolname FROM pg_roles WHERE rolname = ANY($1::text[])"
            " AND NOT (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb"
            "          OR rolbypassrls OR rolreplication)",
            [name for room in ROOMS for name in (role_of(room), owner_of(room))],
        )
        member = await conn.fetchval(
            "SELECT count(*) FROM pg_auth_members WHERE pg_get_userbyid(member) = ANY($1::text[])",
            [name for room in ROOMS for name in (role_of(room), owner_of(room))],
        )
    assert {row["rolname"] for row in rows} == {
        name for room in ROOMS for name in (role_of(room), owner_of(room))
    }
    assert member == 0


@pytest.mark.parametrize("room", ROOMS)
async def test_no_role_makes_tables(partitioned: Database, room: str) -> None:
    """A role that serves may use the schema and not create in it."""
    async with partitioned.connection() as conn:
        role = role_of(room)
        assert await conn.fetchval("SELECT has_schema_privilege($1, 'public', 'USAGE')", role)
        assert not await conn.fetchval("SELECT has_schema_privilege($1, 'public', 'CREATE')", role)


async def test_only_usage_makes_partitions(partitioned: Database, database_url: str) -> None:
    """A function that runs as its owner is for its room alone."""
    async with partitioned.connection() as conn:
        owned = await conn.fetch(
            "SELECT p.proname, g.grantee = 0 AS everybody, pg_get_userbyid(g.grantee) AS grantee"
            " FROM pg_proc p, LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g"
            " WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef"
        )
    assert [row["proname"] for row in owned if row["everybody"]] == []
    grantees = {row["grantee"] for row in owned if row["proname"] == "usage_make_partitions"}
    assert grantees == {role_of("usage"), owner_of("usage")}
    assert {row["proname"] for row in owned} >= {"usage_detach_partitions"}
    async with open_database(database_url, role=role_of("auth"), application="it") as auth:

        async def use_case() -> None:
            async with auth.transaction() as conn:
                await conn.fetchval("SELECT usage_make_partitions(now(), now())")

        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await use_case()
