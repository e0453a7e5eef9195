"""`finity run` and the commands beside it, as a person at a terminal meets them."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from suite import stale, state
from suite.rooms import ROOMS
from suite.supervisor import RUN_RECORD
from tests.suite import terminal
from tests.suite.terminal import Run, finity, plain_environment

NAMES = ["postgres", "valkey", "mail", *(room.name for room in ROOMS), "gateway"]


def recorded(directory: Path) -> list[state.Record]:
    return list(state.read(directory / RUN_RECORD).get("processes", []))


def test_it_runs_shows_what_works_and_ctrl_c_ends_it_all(
    directory: Path, start_run: Callable[..., Run]
) -> None:
    run = start_run().wait_until_ready()
    processes = recorded(directory)
    assert [process["name"] for process in processes] == NAMES

    # The three things the table says to try.
    table = run.output.split("try 1", 1)[1].split("──", 1)[0]
    script = table.replace("try 2", "").replace("try 3", "")
    tried = terminal.run(["/bin/sh", "-c", script], plain_environment(directory))
    assert "200 OK" in tried.stdout, tried
    assert "@finity.localhost" in tried.stdout

    status = finity(directory, "status").stdout
    assert f"running, supervisor {run.process.pid}" in status
    for room in ROOMS:
        assert f"migrations {room.name}: " in status
        assert "pending" not in status
    assert "outbox" in status

    again = finity(directory, "run", **run.addresses.environment())
    assert again.returncode == 1
    assert "already runs from this folder" in again.stderr

    assert run.end() == 0
    assert not any(stale.is_alive(process) for process in processes)
    assert recorded(directory) == []


def test_kill_9_leaves_nothing_that_blocks_the_next_start(
    directory: Path, start_run: Callable[..., Run]
) -> None:
    first = start_run().wait_until_ready()
    processes = recorded(directory)
    first.process.kill()
    first.process.wait()
    ports = first.addresses.environment()
    second = start_run(**ports).wait_until_ready()
    assert not any(stale.is_alive(process) for process in processes)

    # A service that crashes ends the suite with its name.
    auth = next(process for process in recorded(directory) if process["name"] == "auth")
    os.kill(int(auth["pid"]), signal.SIGKILL)
    assert second.process.wait(timeout=60) == 1
    assert "auth stopped with signal SIGKILL" in second.output
    assert recorded(directory) == []


def test_a_taken_port_is_told_with_its_setting(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        ended = finity(directory, "run", FINITY_USAGE_PORT=str(port), FINITY_GATEWAY_PORT="0")
    assert ended.returncode == 1
    assert "FINITY_" in ended.stderr
    assert f"Port {port}" in ended.stderr or "is taken" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_stores_that_do_not_answer_are_told_with_their_setting(directory: Path) -> None:
    free = {name: "0" for room in ROOMS for name in (room.port_setting, room.metrics_setting)}
    free["FINITY_GATEWAY_PORT"] = "0"
    unreachable = finity(directory, "run", DATABASE_URL="postgresql://a:b@127.0.0.1:1/c", **free)
    assert unreachable.returncode == 1
    assert "DATABASE_URL does not lead to a database that answers" in unreachable.stderr
    redis = finity(directory, "run", REDIS_URL="redis://127.0.0.1:1", **free)
    assert redis.returncode == 1
    assert "REDIS_URL does not lead to a server that answers" in redis.stderr


def test_a_wrong_setting_of_a_service_is_told_in_its_words(
    directory: Path, start_run: Callable[..., Run]
) -> None:
    run = start_run(FINITY_SIGNUP_CREDITS="-1")
    assert run.process.wait(timeout=60) == 1
    assert "usage stopped with exit code" in run.output
    assert "FINITY_SIGNUP_CREDITS" in run.output


def test_status_and_migrate_work_when_nothing_runs(directory: Path) -> None:
    status = finity(directory, "status")
    assert status.returncode == 0, status.stderr
    assert "not running" in status.stdout
    assert finity(directory, "migrate", "verify").returncode == 1
    assert "CREATE TABLE" in finity(directory, "migrate", "--dry-run").stdout
    applied = finity(directory, "migrate")
    assert applied.returncode == 0, applied.stderr
    assert finity(directory, "migrate").stdout == "Nothing to apply.\n"
    assert finity(directory, "migrate", "verify").returncode == 0
    assert (directory / "postgres.json").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = finity(tmp_path / "file" / "state", "migrate")
    assert ended.returncode == 1
    assert "cannot be made" in ended.stderr
