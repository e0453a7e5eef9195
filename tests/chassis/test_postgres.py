"""chassis.postgres on a real server."""

import asyncio
from uuid import uuid4

import asyncpg
import pytest

from chassis.dsn import DEFAULT_ACQUIRE_SECONDS, DEFAULT_POOL_SIZE, DatabaseError, Dsn, parse_dsn
from chassis.errors import AlreadyExists
from chassis.postgres import (
    Database,
    on_constraint,
    open_database,
)
from chassis.refusals import Conflict, DatabaseUnavailable, InvalidRequest
from tests.chassis.waiting import until

BARE = "postgresql://finity:pw@db:5432/finity_db"


class EmailTaken(AlreadyExists):
    """The address is taken."""

    reason = "EMAIL_TAKEN"


def test_a_plain_dsn_has_the_defaults() -> None:
    """Without parameters: schema public, ten connections, twenty seconds, statements cached."""
    assert parse_dsn(BARE) == Dsn(BARE, "public", 10, 20.0, 10.0, pgbouncer=False)
    assert (DEFAULT_POOL_SIZE, DEFAULT_ACQUIRE_SECONDS) == (10, 20.0)


def test_prisma_s_parameters_are_translated() -> None:
    """Prisma's parameters become ours and none of them reaches the server; others pass."""
    url = (
        f"{BARE}?schema=app&connection_limit=15&pool_timeout=3.5&connect_timeout=2"
        "&pgbouncer=true&socket_timeout=9&statement_cache_size=0&sslmode=disable"
    )
    assert parse_dsn(url) == Dsn(f"{BARE}?sslmode=disable", "app", 15, 3.5, 2.0, pgbouncer=True)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("mysql://u:secret@h/d", "DATABASE_URL"),
        ("", "DATABASE_URL"),
        ("not a url", "DATABASE_URL"),
        ("postgresql://u:secret@h:port/d", "DATABASE_URL"),
        (f"{BARE}?connection_limit=none", "connection_limit"),
        (f"{BARE}?connection_limit=0", "connection_limit"),
        (f"{BARE}?connection_limit=0.5", "connection_limit"),
        (f"{BARE}?connection_limit=nan", "connection_limit"),
        (f"{BARE}?pool_timeout=-1", "pool_timeout"),
        (f"{BARE}?pool_timeout=inf", "pool_timeout"),
    ],
)
async def test_a_dsn_that_makes_no_sense_is_a_sentence(url: str, named: str) -> None:
    """A wrong DATABASE_URL stops the start with a sentence that names the part, no password."""
    with pytest.raises(DatabaseError) as refused:
        async with open_database(url, role=None, application="test"):
            pass
    assert named in str(refused.value)
    assert "secret" not in str(refused.value)


async def test_a_connection_acts_as_its_role(database_url: str) -> None:
    """Every connection is the room's role, in the DSN's schema, with its timeouts."""
    async with (
        open_database(database_url, role="finity_auth", application="it") as database,
        database.connection() as conn,
    ):
        assert await conn.fetchval("SELECT current_user") == "finity_auth"
        assert await conn.fetchval("SHOW search_path") == '"public"'
        assert await conn.fetchval("SHOW application_name") == "it"
        assert await conn.fetchval("SHOW statement_timeout") == "10s"
        assert await conn.fetchval("SHOW lock_timeout") == "1s"


async def test_pgbouncer_means_no_cached_statements(server_url: str) -> None:
    """pgbouncer=true prepares no named statement."""
    async with (
        open_database(f"{server_url}&pgbouncer=true", role=None, application="it") as database,
        database.connection() as conn,
    ):
        for _ in range(3):
            await conn.fetchval("SELECT 1")
        assert await conn.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0


async def test_a_pool_without_a_free_connection_refuses(server_url: str) -> None:
    """A caller that gets no connection in time is told that the database is unavailable."""
    url = f"{server_url}&connection_limit=1&pool_timeout=0.05"
    async with open_database(url, role=None, application="it") as database:
        async with database.connection():
            with pytest.raises(DatabaseUnavailable) as refused:
                async with database.connection():
                    pass
        assert refused.value.retry_after
        async with database.connection() as conn:
            assert await conn.fetchval("SELECT 1") == 1


async def insert_user(database: Database, email: str, role: str = "free") -> None:
    async with database.transaction() as conn:
        with on_constraint("users_email_key", EmailTaken):
            await conn.execute(
                "INSERT INTO users (id, email, role, created_at) VALUES ($1, $2, $3, now())",
                uuid4(),
                email,
                role,
            )


async def test_a_named_constraint_is_one_refusal(auth_database: Database) -> None:
    """The violation of the constraint named is the refusal given, of any other a defect."""
    await insert_user(auth_database, "ada@example.com")
    with pytest.raises(EmailTaken):
        await insert_user(auth_database, "ada@example.com")
    with pytest.raises(asyncpg.CheckViolationError):
        await insert_user(auth_database, "bob@example.com", "emperor")


async def test_a_transaction_is_whole(auth_database: Database) -> None:
    """Whatever ends a use case early, a refusal or a cancellation, leaves nothing behind."""

    async def fail(error: BaseException) -> None:
        async with auth_database.transaction() as conn:
            await conn.execute(
                "INSERT INTO users (id, email, created_at) VALUES ($1, $2, now())",
                uuid4(),
                f"{uuid4()}@example.com",
            )
            raise error

    for error in (Conflict(), ZeroDivisionError(), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            await fail(error)
    async with auth_database.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM users") == 0


async def test_a_killed_backend_is_a_refusal_then_forgotten(
    auth_database: Database, server_url: str
) -> None:
    """A connection cut by the server refuses its call; the next call gets a good one."""

    async def use_case() -> None:
        async with auth_database.transaction() as conn:
            pid = await conn.fetchval("SELECT pg_backend_pid()")
            killer = await asyncpg.connect(server_url.partition("?")[0])
            await killer.execute("SELECT pg_terminate_backend($1)", pid)
            await killer.close()
            await conn.fetchval("SELECT 1")

    for _ in range(3):
        with pytest.raises(DatabaseUnavailable) as refused:
            await use_case()
        assert refused.value.retry_after
    async with auth_database.transaction() as conn:
        assert await conn.fetchval("SELECT 1") == 1


async def test_a_backend_killed_while_idle_is_replaced(
    auth_database: Database, server_url: str
) -> None:
    """A connection cut while it was idle costs at most one refusal."""
    async with auth_database.connection() as conn:
        pid = await conn.fetchval("SELECT pg_backend_pid()")
    killer = await asyncpg.connect(server_url.partition("?")[0])
    await killer.execute("SELECT pg_terminate_backend($1)", pid)
    await killer.close()

    async def answers() -> bool:
        try:
            async with auth_database.connection() as conn:
                return bool(await conn.fetchval("SELECT true"))
        except DatabaseUnavailable:
            return False

    await until(answers)


async def test_a_deadlock_is_a_conflict(auth_database: Database) -> None:
    """Of two transactions that wait for each other one goes through, one reads CONFLICT."""
    for email in ("a@example.com", "b@example.com"):
        await insert_user(auth_database, email)
    barrier = asyncio.Barrier(2)
    lock = "SELECT 1 FROM users WHERE email = $1 FOR UPDATE"

    async def use_case(first: str, second: str) -> None:
        async with auth_database.transaction() as conn:
            await conn.execute("SET LOCAL lock_timeout = '5s'")
            await conn.fetchval(lock, first)
            await barrier.wait()
            await conn.fetchval(lock, second)

    emails = ("a@example.com", "b@example.com")
    outcomes = await asyncio.gather(
        use_case(*emails), use_case(*reversed(emails)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict", "NoneType"]


async def test_a_statement_that_takes_too_long_is_unavailable(auth_database: Database) -> None:
    """A statement cut by its timeout is refused as something to send again."""

    async def use_case() -> None:
        async with auth_database.transaction() as conn:
            await conn.execute("SET LOCAL statement_timeout = '20ms'")
            await conn.execute("SELECT pg_sleep(30)")

    with pytest.raises(DatabaseUnavailable):
        await use_case()


async def test_text_that_cannot_be_stored_is_the_caller_s_mistake(auth_database: Database) -> None:
    """PostgreSQL stores no NUL character: text with one is INVALID_REQUEST, not a defect."""
    for statement, value in (
        ("SELECT $1::text", "a\0b"),
        ("SELECT $1::jsonb -> 'a' #>> '{}'", '{"a": "\\u0000"}'),
    ):

        async def use_case(statement: str = statement, value: str = value) -> None:
            async with auth_database.transaction() as conn:
                await conn.fetchval(statement, value)

        with pytest.raises(InvalidRequest):
            await use_case()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("finity:", "nobody:"), "does not let us in"),
        (("/finity_db", "/absent_db"), "does not let us in"),
        (("?schema", "?unheard_of=1&schema"), "unheard_of"),
    ],
    ids=["login", "database", "parameter"],
)
async def test_a_server_that_refuses_us_is_a_sentence(
    server_url: str, change: tuple[str, str], said: str
) -> None:
    """A wrong login, database or parameter names DATABASE_URL and never its password."""
    url = server_url.replace(*change)
    if url == server_url:
        pytest.skip("TEST_DATABASE_URL is not shaped like ours")
    with pytest.raises(DatabaseError) as refused:
        async with open_database(url, role=None, application="it"):
            pass
    sentence = str(refused.value)
    assert "DATABASE_URL" in sentence
    assert said in sentence
    assert parse_dsn(url).url.split(":")[2].split("@")[0] not in sentence


async def test_a_server_nobody_listens_on_is_a_sentence() -> None:
    """An address where nothing listens names DATABASE_URL, host and port."""
    with pytest.raises(DatabaseError, match=r"DATABASE_URL leads to 127\.0\.0\.1:1/x"):
        async with open_database("postgresql://u:p@127.0.0.1:1/x", role=None, application="it"):
            pass


async def test_a_role_that_does_not_exist_means_never_migrated(empty_database_url: str) -> None:
    """A database whose server has no such role was never migrated, and the sentence says so."""
    with pytest.raises(DatabaseError, match="never migrated; run `finity migrate`"):
        async with open_database(empty_database_url, role="finity_nowhere", application="it"):
            pass
