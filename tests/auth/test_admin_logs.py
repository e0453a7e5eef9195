"""The admin log: chained by the database, added to only, and verified apart from it."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis import migrate
from chassis.postgres import Connection, Database
from chassis.roles import owner_of
from services.auth.domain.admin_logs import (
    FIRST_HASH,
    AdminLog,
    Broken,
    Chain,
    Fault,
    Head,
    hash_of,
)
from services.auth.store import admin_logs as store
from suite import audit, state
from tests.conftest import ROOMS
from tests.factories import connect_owner
from tests.fakes import FakeClock
from tests.suite.terminal import finity

NOW = datetime(2026, 11, 25, 12, 0, 0, 123456, UTC)
STRANGE = {
    "reason": 'a "b" \\ \N{SNOWMAN}\N{PILE OF POO}',
    "": "",
    "\u00e9": "x",
    "z": "\t",
    "B": "b",
}


async def insert(conn: Connection, details: dict[str, str], now: datetime = NOW) -> None:
    await store.insert_admin_log(
        conn,
        log_id=uuid4(),
        actor="service:test",
        action="test",
        target=uuid4(),
        details=details,
        now=now,
    )


async def add(database: Database, details: dict[str, str]) -> None:
    """Adds an entry as the room does."""
    async with database.transaction() as conn:
        await insert(conn, details)


async def entries(owner: Connection) -> list[AdminLog]:
    return await store.walk_admin_logs(owner, after=(0, UUID(int=0)), limit=1000)


async def head_of(owner: Connection) -> Head:
    head = await store.get_head(owner)
    assert head is not None
    return head


@pytest.fixture
async def undone(conn: Connection) -> Sequence[AdminLog]:
    """The same, on the connection whose work is rolled back."""
    for number in range(5):
        await insert(conn, {"reason": f"number {number}"})
    return await entries(conn)


@pytest.fixture
async def five(auth_database: Database, owner: Connection) -> Sequence[AdminLog]:
    """A log of five entries."""
    for number in range(5):
        await add(auth_database, {"reason": f"number {number}"})
    return await entries(owner)


def test_the_bytes_are_those_that_are_documented() -> None:
    """A vector, put together by hand: whoever writes another verifier can check it by this one."""
    entry = AdminLog(
        seq=2,
        id=UUID("0192e4a0-0000-7000-8000-000000000001"),
        actor="service:billing",
        action="set_role",
        target=UUID("0192e4a0-0000-7000-8000-000000000002"),
        details={"to": "pro", "from": "free"},
        created_at=datetime(1970, 1, 1, 0, 0, 1, 5, UTC),
        prev_hash=b"\x11" * 32,
        hash=b"",
    )
    raw = (
        b"finity.admin_log.v1"
        b"\0\0\0\0\0\0\0\x02" + b"\x11" * 32 + entry.id.bytes + b"\0\0\0\x0fservice:billing"
        b"\0\0\0\x08set_role\x01" + UUID("0192e4a0-0000-7000-8000-000000000002").bytes
    ) + (b"\0\0\0\0\0\x0f\x42\x45\0\0\0\x02\0\0\0\x04from\0\0\0\x04free\0\0\0\x02to\0\0\0\x03pro")

    assert hash_of(entry) == hashlib.sha256(raw).digest()


async def test_database_and_verifier_hash_alike(conn: Connection) -> None:
    """Any text, key, time and a missing target give one hash in SQL and in Python."""
    for details in (STRANGE, {}, {"reason": "x" * 500}):
        for now in (NOW, datetime(1969, 12, 31, 23, 59, 59, 999999, UTC), NOW.replace(year=9999)):
            await insert(conn, details, now)
    await conn.execute(
        "INSERT INTO admin_logs (id, actor, action, created_at) VALUES ($1, '', 'none', $2)",
        uuid4(),
        NOW,
    )
    logged = await entries(conn)
    assert [entry.hash for entry in logged] == [hash_of(entry) for entry in logged]
    assert logged[0].details == STRANGE
    assert logged[-1].target is None


async def test_every_entry_has_its_place(
    five: Sequence[AdminLog], owner: Connection, database_url: str
) -> None:
    """Places count from 1, each entry carries the hash before, the head the last one."""
    assert [entry.seq for entry in five] == [1, 2, 3, 4, 5]
    assert [entry.prev_hash for entry in five] == [FIRST_HASH, *(e.hash for e in five[:-1])]
    assert await head_of(owner) == Head(5, five[-1].hash)
    chain = Chain()
    assert await audit.follow(database_url, chain) is None
    assert (chain.seq, chain.hash) == (5, five[-1].hash)


async def test_no_writer_chooses_place_or_hash(
    undone: Sequence[AdminLog], conn: Connection
) -> None:
    """What a writer says of place and hashes is not listened to."""
    await conn.execute(
        "INSERT INTO admin_logs (id, actor, action, created_at, seq, prev_hash, hash)"
        " VALUES ($1, 'forger', 'test', $2, 99, $3, $3)",
        uuid4(),
        NOW,
        bytes(32),
    )
    last = (await entries(conn))[-1]
    assert (last.seq, last.prev_hash, last.hash) == (6, undone[-1].hash, hash_of(last))


CHANGES = (
    "UPDATE admin_logs SET actor = 'nobody'",
    "UPDATE admin_logs SET actor = 'nobody' WHERE false",
    "DELETE FROM admin_logs",
    "TRUNCATE admin_logs",
    "DELETE FROM admin_log_head",
    "TRUNCATE admin_log_head",
)


@pytest.mark.parametrize("role", ["finity_auth", owner_of("auth"), "none"])
async def test_the_log_is_only_added_to(
    undone: Sequence[AdminLog], conn: Connection, role: str
) -> None:
    """Not even the table's owner or a superuser changes an entry while the trigger is there."""

    async def change(statement: str) -> None:
        async with conn.transaction():
            await conn.execute(f"SET LOCAL ROLE {role}")
            await conn.execute(statement)

    for statement in CHANGES:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await change(statement)
    assert await entries(conn) == undone


async def test_the_room_cannot_move_the_head(conn: Connection) -> None:
    """The role that serves may read the end of the chain and not write it."""
    await conn.execute("SET LOCAL ROLE finity_auth")
    assert await head_of(conn) == Head(0, FIRST_HASH)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await conn.execute("UPDATE admin_log_head SET seq = 0")


@pytest.mark.parametrize(
    ("details", "error"),
    [
        ('{"a": 1}', asyncpg.CheckViolationError),
        ('{"a": ["b"]}', asyncpg.CheckViolationError),
        ('{"a": {"b": "c"}}', asyncpg.CheckViolationError),
        ('{"a": null}', asyncpg.CheckViolationError),
        # The trigger meets them before the constraint does.
        ("[]", asyncpg.InvalidParameterValueError),
        ('"a"', asyncpg.InvalidParameterValueError),
    ],
)
async def test_details_are_texts(conn: Connection, details: str, error: type[Exception]) -> None:
    """Whatever could be hashed in two ways is not written."""
    with pytest.raises(error):
        await conn.execute(
            "INSERT INTO admin_logs (id, actor, action, created_at, details)"
            " VALUES ($1, 't', 'test', now(), $2)",
            uuid4(),
            details,
        )


# Each is done by a superuser who has taken the triggers off; what verify must find, and where.
TAMPERED = {
    "changed": ("UPDATE admin_logs SET actor = 'user:x' WHERE seq = 3", Fault.CONTENT, 3),
    "another time": (
        "UPDATE admin_logs SET created_at = created_at + interval '1 microsecond' WHERE seq = 2",
        Fault.CONTENT,
        2,
    ),
    "no time": (
        (
            "ALTER TABLE admin_logs ALTER created_at DROP NOT NULL;"
            "UPDATE admin_logs SET created_at = NULL WHERE seq = 2"
        ),
        Fault.CONTENT,
        2,
    ),
    "another kind": (
        (
            "ALTER TABLE admin_logs DROP CONSTRAINT admin_logs_details_are_texts;"
            "UPDATE admin_logs SET details = '[]' WHERE seq = 1"
        ),
        Fault.CONTENT,
        1,
    ),
    "changed and hashed again": (
        (
            "UPDATE admin_logs SET actor = 'user:x' WHERE seq = 3;"
            "UPDATE admin_logs AS l SET hash = admin_log_hash(l) WHERE seq = 3"
        ),
        Fault.LINK,
        4,
    ),
    "the first removed": ("DELETE FROM admin_logs WHERE seq = 1", Fault.GAP, 2),
    "one removed": ("DELETE FROM admin_logs WHERE seq = 3", Fault.GAP, 4),
    "one removed and the rest moved up": (
        (
            "DELETE FROM admin_logs WHERE seq = 3; UPDATE admin_logs SET seq = 3 WHERE seq = 4;"
            "UPDATE admin_logs SET seq = 4 WHERE seq = 5"
        ),
        Fault.LINK,
        3,
    ),
    "the last removed": ("DELETE FROM admin_logs WHERE seq = 5", Fault.HEAD, 5),
    "the last two removed": ("DELETE FROM admin_logs WHERE seq > 3", Fault.HEAD, 4),
    "all removed": ("DELETE FROM admin_logs", Fault.HEAD, 1),
    "the head removed": ("DELETE FROM admin_log_head", Fault.HEAD, 1),
    "two swapped": (
        (
            "UPDATE admin_logs SET seq = -1 WHERE seq = 2;"
            "UPDATE admin_logs SET seq = 2 WHERE seq = 3;"
            "UPDATE admin_logs SET seq = 3 WHERE seq = -1"
        ),
        Fault.LINK,
        2,
    ),
    "two contents swapped": (
        (
            "UPDATE admin_logs AS l SET details = o.details FROM admin_logs AS o"
            " WHERE (l.seq, o.seq) IN ((2, 3), (3, 2))"
        ),
        Fault.CONTENT,
        2,
    ),
    "one forged at the end": (
        (
            "INSERT INTO admin_logs (id, actor, action, created_at, seq, prev_hash, hash)"
            " SELECT gen_random_uuid(), 'forger', 'test', now(), 6, hash, hash FROM admin_logs"
            " WHERE seq = 5; UPDATE admin_logs AS l SET hash = admin_log_hash(l) WHERE seq = 6"
        ),
        Fault.HEAD,
        6,
    ),
    "one forged at a place that is taken": (
        (
            "ALTER TABLE admin_logs DROP CONSTRAINT admin_logs_seq_key;"
            "INSERT INTO admin_logs (id, actor, action, created_at, seq, prev_hash, hash)"
            " SELECT 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'forger', 'test', now(), 3, prev_hash,"
            " hash FROM admin_logs WHERE seq = 3;"
            "UPDATE admin_logs AS l SET hash = admin_log_hash(l) WHERE actor = 'forger'"
        ),
        Fault.GAP,
        3,
    ),
}


async def tamper(owner: Connection, statements: str) -> None:
    """Does what only a superuser can, with the triggers and counting constraint out of the way."""
    await owner.execute(
        "ALTER TABLE admin_logs DISABLE TRIGGER USER; ALTER TABLE admin_log_head DISABLE TRIGGER"
        " USER; ALTER TABLE admin_logs DROP CONSTRAINT admin_logs_seq_counts;" + statements
    )


@pytest.mark.parametrize("how", TAMPERED)
async def test_tampering_is_found(undone: Sequence[AdminLog], conn: Connection, how: str) -> None:
    """Each way of tampering is found, at the first entry that shows it."""
    statements, fault, seq = TAMPERED[how]
    assert await audit.walk(conn, Chain()) is None
    await tamper(conn, statements)
    broken = await audit.walk(conn, Chain())
    assert broken is not None
    assert (broken.fault, broken.seq) == (fault, seq)


async def test_a_log_written_anew_is_found_by_a_head_noted_before(
    five: Sequence[AdminLog], owner: Connection, database_url: str
) -> None:
    """Who rewrites the whole chain and its head is whole in itself, but not what was noted."""
    noted = [Head(entry.seq, entry.hash[:6]) for entry in five]
    for head in noted:
        assert await audit.follow(database_url, Chain(head)) is None
    unknown = await audit.follow(database_url, Chain(Head(6, bytes(6))))
    assert unknown == Broken(Fault.PROOF, 6, None)
    await tamper(owner, "DELETE FROM admin_logs WHERE seq = 5")
    last = FIRST_HASH
    for entry in five[:4]:
        forged = replace(entry, actor="user:x", prev_hash=last)
        last = hash_of(forged)
        await owner.execute(
            "UPDATE admin_logs SET actor = $2, prev_hash = $3, hash = $4 WHERE id = $1",
            *(entry.id, forged.actor, forged.prev_hash, last),
        )
    await owner.execute("UPDATE admin_log_head SET seq = 4, hash = $1", last)
    assert await audit.follow(database_url, Chain()) is None
    found = [await audit.follow(database_url, Chain(head)) for head in noted]
    assert [broken and broken.fault for broken in found] == [Fault.PROOF] * 5


async def fifty_add(database: Database) -> int:
    """Fifty writers behind one barrier; returns how many succeeded."""
    barrier = asyncio.Barrier(50)

    async def one(number: int) -> bool:
        await barrier.wait()
        try:
            await add(database, {"reason": str(number)})
        except asyncpg.UniqueViolationError:
            return False
        return True

    return sum(await asyncio.gather(*map(one, range(50))))


async def test_fifty_writers_make_one_chain(
    auth_database: Database, owner: Connection, database_url: str
) -> None:
    """Parallel writers queue for their places: no gap, no fork, nobody refused, in every round."""
    for rounds in range(1, 6):
        assert await fifty_add(auth_database) == 50
        assert [entry.seq for entry in await entries(owner)] == list(range(1, rounds * 50 + 1))
        assert await audit.follow(database_url, Chain()) is None


async def test_without_the_lock_the_chain_would_fork(
    auth_database: Database, owner: Connection, database_url: str
) -> None:
    """Negative control: writers that only read the head take one place twice."""
    source = await owner.fetchval("SELECT prosrc FROM pg_proc WHERE proname = 'admin_logs_chain'")
    await owner.execute("ALTER TABLE admin_logs DROP CONSTRAINT admin_logs_seq_key")
    unlocked = source.replace("FOR UPDATE;", "; PERFORM pg_sleep(0.01);")
    assert unlocked != source
    await owner.execute(
        "CREATE OR REPLACE FUNCTION admin_logs_chain() RETURNS trigger LANGUAGE plpgsql"
        f" SECURITY DEFINER SET search_path = public, pg_temp AS $fn${unlocked}$fn$"
    )
    assert await fifty_add(auth_database) == 50
    assert len({entry.seq for entry in await entries(owner)}) < 50
    assert await audit.follow(database_url, Chain()) is not None


async def test_a_writer_that_fails_leaves_no_gap(
    auth_database: Database, five: Sequence[AdminLog], owner: Connection, database_url: str
) -> None:
    """A place taken by what was rolled back is the next one's."""

    async def fail() -> None:
        async with auth_database.transaction() as conn:
            await insert(conn, {})
            raise RuntimeError("rolled back")

    with pytest.raises(RuntimeError):
        await fail()
    await add(auth_database, {})
    assert (await entries(owner))[-1].seq == 6
    assert await audit.follow(database_url, Chain()) is None


async def test_what_was_logged_before_is_chained_by_the_migration(
    empty_database_url: str, tmp_path: Path, clock: FakeClock
) -> None:
    """A database that has a log already gets the chain in the order of time, and goes on."""
    (auth,) = [room for room in ROOMS if room.name == "auth"]
    chaining = "chain_admin_logs"
    before = tmp_path / "migrations"
    before.mkdir()
    for migration in migrate.load(auth):
        if migration.name == chaining:
            break
        name = f"{migration.version:04d}_{migration.name}.sql"
        (before / name).write_text(migration.sql)
    others = [room for room in ROOMS if room.name != "auth"]
    await migrate.apply(empty_database_url, [migrate.Room("auth", before), *others], lambda _: None)
    async with connect_owner(empty_database_url) as owner:
        for number in range(20):
            await owner.execute(
                "INSERT INTO admin_logs (id, actor, action, target_user_id, details, created_at)"
                " VALUES ($1, 'service:billing', 'set_role', $2, $3, $4)",
                uuid4(),
                uuid4(),
                json.dumps(STRANGE),
                clock.now() - timedelta(seconds=number // 2),
            )
        await migrate.apply(empty_database_url, ROOMS, lambda _: None)
        logged = await entries(owner)
        order = await owner.fetch("SELECT id FROM admin_logs ORDER BY created_at, id")
        assert [entry.id for entry in logged] == [row["id"] for row in order]
        await owner.execute(
            "INSERT INTO admin_logs (id, actor, action, created_at) VALUES ($1, 't', 'test', $2)",
            uuid4(),
            clock.now(),
        )
    chain = Chain()
    assert await audit.follow(empty_database_url, chain) is None
    assert chain.seq == 21


def run_verify(url: str, *arguments: str) -> tuple[int, str]:
    with state.scratch() as directory:
        ended = finity(directory, "audit", "verify", *arguments, DATABASE_URL=url)
    return ended.returncode, ended.stdout + ended.stderr


async def test_the_command_says_so(
    five: Sequence[AdminLog], owner: Connection, database_url: str
) -> None:
    """A whole chain with its head, the first broken entry with exit code 1; a wrong head: usage."""
    mark = five[-1].hash.hex()[:12]
    code, output = await asyncio.to_thread(run_verify, database_url, "--head", f"5:{mark}")
    assert (code, output.splitlines()[0]) == (0, f"5 entries, chain whole, head {mark}")
    assert f"--head 5:{mark}" in output.splitlines()[1]
    await tamper(owner, TAMPERED["changed"][0])
    code, output = await asyncio.to_thread(run_verify, database_url)
    assert (code, output) == (
        1,
        f"broken at entry 3 ({five[2].id}): content\nIt is not what its hash was made of.\n",
    )
    code, output = await asyncio.to_thread(run_verify, database_url, "--head", "[red]5:xy")
    assert code == 2
    assert "write it as an earlier run printed it" in output


async def test_a_database_that_is_behind_is_told(empty_database_url: str) -> None:
    """A log that is not chained yet, and no database at all, are each one sentence."""
    code, output = await asyncio.to_thread(run_verify, empty_database_url)
    assert code == 1
    assert output == ("Error: This database has no chained admin log yet; run `finity migrate`.\n")
    code, output = await asyncio.to_thread(run_verify, "")
    assert (code, output) == (1, "Error: No suite runs here and DATABASE_URL is not set.\n")
