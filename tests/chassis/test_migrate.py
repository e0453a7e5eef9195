"""chassis.migrate on empty databases of a real server."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from chassis import migrate
from chassis.dsn import DatabaseError
from chassis.migrate import MigrationError, Room
from chassis.roles import owner_of, role_of

# Roles belong to the whole server: rooms of this name may exist from the last run.
ROOM = "probe"
CREATE = "CREATE TABLE things (id int PRIMARY KEY);\nGRANT SELECT ON things TO finity_probe;\n"


@pytest.fixture
def room(tmp_path: Path) -> Room:
    """A room with two migrations."""
    write(tmp_path, "0001_create_things.sql", CREATE)
    write(tmp_path, "0002_fill_things.sql", "INSERT INTO things VALUES (1);\n")
    return Room(ROOM, tmp_path)


def write(directory: Path, name: str, sql: str) -> None:
    (directory / name).write_text(sql)


async def apply(url: str, room: Room) -> list[str]:
    """Applies what is pending and returns what was reported."""
    reported: list[str] = []
    assert await migrate.apply(url, [room], reported.append) == len(reported)
    return reported


async def connect(url: str) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(urlsplit(url)._replace(query="").geturl())


async def values(url: str, query: str) -> list[object]:
    conn = await connect(url)
    try:
        return [row[0] for row in await conn.fetch(query)]
    finally:
        await conn.close()


async def test_migrations_are_applied_once_in_order(empty_database_url: str, room: Room) -> None:
    """Each file runs once, in the order of its number; a second run has nothing to do."""
    assert await apply(empty_database_url, room) == [
        "probe 0001 create_things",
        "probe 0002 fill_things",
    ]
    assert await apply(empty_database_url, room) == []
    assert await values(empty_database_url, "SELECT id FROM things") == [1]
    write(room.directory, "0003_more.sql", "INSERT INTO things VALUES (2);")
    assert await apply(empty_database_url, room) == ["probe 0003 more"]


async def test_ten_starts_at_once_apply_each_file_once(empty_database_url: str, room: Room) -> None:
    """Ten processes that migrate an empty database at the same moment share the work."""
    reports = await asyncio.gather(*(apply(empty_database_url, room) for _ in range(10)))
    assert sorted(line for report in reports for line in report) == [
        "probe 0001 create_things",
        "probe 0002 fill_things",
    ]
    assert await values(empty_database_url, "SELECT count(*) FROM things") == [1]


async def test_a_plan_changes_nothing(empty_database_url: str, room: Room) -> None:
    """The plan lists what would run, with its SQL, and leaves an empty database empty."""
    planned = await migrate.plan(empty_database_url, [room])
    assert [str(migration) for migration in planned] == [
        "probe 0001 create_things",
        "probe 0002 fill_things",
    ]
    assert planned[0].sql == CREATE
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    assert await values(empty_database_url, tables) == []
    await apply(empty_database_url, room)
    assert await migrate.plan(empty_database_url, [room]) == []


async def test_an_edited_file_is_refused(empty_database_url: str, room: Room) -> None:
    """A file that changed after it ran stops everything and is named; undoing it is enough."""
    await apply(empty_database_url, room)
    write(room.directory, "0001_create_things.sql", CREATE + "-- one more word\n")
    write(room.directory, "0003_more.sql", "INSERT INTO things VALUES (2);")
    with pytest.raises(MigrationError, match="probe 0001 was edited after it had been applied"):
        await apply(empty_database_url, room)
    assert await migrate.verify(empty_database_url, [room]) == [
        "probe 0001 create_things is changed.",
        "probe 0003 more is pending.",
    ]
    assert await values(empty_database_url, "SELECT id FROM things") == [1]
    write(room.directory, "0001_create_things.sql", CREATE)
    assert await apply(empty_database_url, room) == ["probe 0003 more"]


async def test_status_tells_every_state(empty_database_url: str, room: Room) -> None:
    """Applied, pending and missing files are told apart, with the time they ran."""
    await apply(empty_database_url, room)
    (room.directory / "0002_fill_things.sql").unlink()
    states = await migrate.status(empty_database_url, [room])
    assert [(state.version, state.state) for state in states] == [(1, "applied"), (2, "missing")]
    assert all(state.applied_at for state in states)
    write(room.directory, "0002_fill_things.sql", "INSERT INTO things VALUES (1);\n")
    write(room.directory, "0003_more.sql", "SELECT 1;")
    states = await migrate.status(empty_database_url, [room])
    assert [state.state for state in states] == ["applied", "applied", "pending"]
    assert states[-1].applied_at is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0004_gap.sql", "0004_gap.sql of probe must be 0003_name.sql."),
        ("0002_twice.sql", "0002_twice.sql of probe must be 0003_name.sql."),
        ("3_short.sql", "3_short.sql of probe must be 0003_name.sql."),
        ("0003-dash.sql", "0003-dash.sql of probe must be 0003_name.sql."),
        ("0003_Upper.sql", "0003_Upper.sql of probe must be 0003_name.sql."),
    ],
)
async def test_a_gap_or_a_bad_name_is_refused(
    empty_database_url: str, room: Room, name: str, expected: str
) -> None:
    """A file whose name does not continue the row is named with the name it should have."""
    write(room.directory, name, "SELECT 1;")
    with pytest.raises(MigrationError) as refused:
        await apply(empty_database_url, room)
    assert str(refused.value) == expected


async def test_a_failing_file_leaves_nothing_behind(empty_database_url: str, room: Room) -> None:
    """A file that fails is rolled back whole, named, and runs again once it is mended."""
    write(room.directory, "0003_bad.sql", "INSERT INTO things VALUES (2); SELECT 1 / 0;")
    with pytest.raises(MigrationError, match="probe 0003 bad failed: division by zero"):
        await apply(empty_database_url, room)
    assert await values(empty_database_url, "SELECT id FROM things") == [1]
    write(room.directory, "0003_bad.sql", "INSERT INTO things VALUES (2);")
    assert await apply(empty_database_url, room) == ["probe 0003 bad"]


async def test_a_file_does_not_wait_for_long(
    empty_database_url: str, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file would change may be in use: it gives way, says so, and runs another time."""
    await apply(empty_database_url, room)
    write(room.directory, "0003_more.sql", "ALTER TABLE things ADD name text;")
    monkeypatch.setattr(migrate, "LOCK_SECONDS", 0.05)
    reader = await connect(empty_database_url)
    try:
        async with reader.transaction():
            await reader.execute("SELECT id FROM things")
            with pytest.raises(MigrationError) as refused:
                await asyncio.wait_for(apply(empty_database_url, room), 30)
    finally:
        await reader.close()
    assert str(refused.value) == (
        "probe 0003 more waited too long for a table that is in use, and left all as it was."
        " Run `finity migrate` again when the database is less busy."
    )
    assert await apply(empty_database_url, room) == ["probe 0003 more"]


async def test_a_service_starts_only_on_a_current_database(
    empty_database_url: str, room: Room
) -> None:
    """Behind by a file, or with an edited one, the sentence names it and what to run."""
    conn = await connect(empty_database_url)
    try:
        with pytest.raises(DatabaseError) as refused:
            await migrate.require_current(conn, room)
        assert str(refused.value) == (
            "The database is behind: probe 0001 create_things is pending. Run `finity migrate`."
        )
        await apply(empty_database_url, room)
        await migrate.require_current(conn, room)
        write(room.directory, "0002_fill_things.sql", "SELECT 2;")
        with pytest.raises(MigrationError, match="probe 0002 fill_things is changed"):
            await migrate.require_current(conn, room)
    finally:
        await conn.close()


async def test_a_database_ahead_is_current(empty_database_url: str, room: Room) -> None:
    """While a new version rolls out, the old one still starts on the newer database."""
    await apply(empty_database_url, room)
    (room.directory / "0002_fill_things.sql").unlink()
    conn = await connect(empty_database_url)
    await migrate.require_current(conn, room)
    await conn.close()


async def test_another_schema_holds_everything(empty_database_url: str, room: Room) -> None:
    """With ?schema=app tables, record and grants are in app, which is made if absent."""
    url = empty_database_url.replace("schema=public", "schema=app")
    await apply(url, room)
    assert await apply(url, room) == []
    where = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename ~ 'things|migrations'"
    assert await values(url, where) == ["app"]
    granted = "SELECT has_table_privilege('finity_probe', 'app.things', 'SELECT')"
    assert await values(url, granted) == [True]
    usable = "SELECT has_schema_privilege('finity_probe', 'app', 'USAGE')"
    assert await values(url, usable) == [True]


async def test_tables_belong_to_the_room_s_owner(empty_database_url: str, room: Room) -> None:
    """Migrations run as an owner that cannot log in; the role that serves owns nothing."""
    await apply(empty_database_url, room)
    owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'things'"
    assert await values(empty_database_url, owner) == [owner_of(ROOM)]
    login = "SELECT rolname FROM pg_roles WHERE rolname ~ '^finity_probe' AND NOT rolcanlogin"
    assert sorted(map(str, await values(empty_database_url, login))) == [
        role_of(ROOM),
        owner_of(ROOM),
    ]
    creates = "SELECT has_schema_privilege('finity_probe', 'public', 'CREATE')"
    assert await values(empty_database_url, creates) == [False]


async def test_a_login_without_superpowers_can_migrate(
    empty_database_url: str, server_url: str, room: Room
) -> None:
    """On a managed server the login is no superuser: CREATEROLE and its own database suffice."""
    login, room = f"migrator_{uuid4().hex[:8]}", Room(f"p{uuid4().hex[:8]}", room.directory)
    write(room.directory, "0001_create_things.sql", "CREATE TABLE things (id int);")
    database = urlsplit(empty_database_url).path[1:]
    admin = await connect(server_url)
    await admin.execute(f"CREATE ROLE {login} LOGIN CREATEROLE PASSWORD 'pw'")
    await admin.execute(f"ALTER DATABASE {database} OWNER TO {login}")
    parts = urlsplit(empty_database_url)
    url = parts._replace(netloc=f"{login}:pw@{parts.hostname}:{parts.port}").geturl()
    try:
        assert len(await apply(url, room)) == 2
        assert await migrate.verify(url, [room]) == []
    finally:
        await admin.execute(f"DROP DATABASE {database} WITH (FORCE)")
        for role in (role_of(room.name), owner_of(room.name), login):
            await admin.execute(f"DROP ROLE IF EXISTS {role}")
        await admin.close()
