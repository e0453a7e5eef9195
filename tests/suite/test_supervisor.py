"""The supervisor, with stand-ins for the services: order, crashes, leftovers, signals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from suite import ports, processes, stale, state
from suite.errors import SuiteError
from suite.processes import Child
from suite.supervisor import GRACE, RUN_RECORD, Supervisor, Tier
from tests.suite.terminal import holding, wait_for


def python(name: str, code: str, lines: list[str]) -> Child:
    """A child that runs a line of Python."""
    return Child(
        name,
        [sys.executable, "-c", code],
        output=lambda who, line: lines.append(f"{who}: {line}"),
    )


LISTENS_WITH_THREADS = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
for _ in range(12):
    threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
print(server.getsockname()[1], flush=True)
threading.Event().wait()
"""


def shell(name: str, script: str) -> Child:
    return Child(name, ["/bin/sh", "-c", script])


def test_a_child_that_ends_is_told_with_its_code_and_last_lines(directory: Path) -> None:
    supervisor = Supervisor(directory)
    child = shell("auth", "echo one; echo FINITY_SECRET is too short. >&2; exit 3")
    child.start()
    supervisor.adopt(Tier.ROOMS, child, "")
    with pytest.raises(
        SuiteError, match=r"auth stopped with exit code 3; it wrote:\n  one\n  FINITY_SECRET"
    ):
        supervisor.watch()


def test_a_child_killed_by_a_signal_is_told_by_its_name() -> None:
    child = shell("usage", "kill -SEGV $$")
    child.start()
    child.process.wait()
    with pytest.raises(SuiteError, match="usage stopped with signal SIGSEGV and wrote nothing"):
        child.require_running()


def test_a_program_that_is_not_there_is_told() -> None:
    child = Child("gateway", ["/nonexistent/envoy"])
    child.start()
    with pytest.raises(SuiteError, match="gateway stopped with exit code 1"):
        child.wait_until(lambda: False, 5)


def test_one_that_is_never_ready_is_told() -> None:
    child = shell("auth", "echo waiting for godot; exec sleep 60")
    child.start()
    try:
        wait_for(lambda: bool(child._lines))
        with pytest.raises(
            SuiteError, match="auth was not ready after 0 s; it last wrote: waiting"
        ):
            child.wait_until(lambda: False, 0.3)
    finally:
        child.kill()


def test_lines_are_forwarded_under_the_childs_name() -> None:
    lines: list[str] = []
    child = python("auth", "print('caf\\xe9'); import sys; print('two', file=sys.stderr)", lines)
    child.start()
    child.process.wait()
    child.stop()
    assert sorted(lines) == ["auth: café", "auth: two"]


def test_tiers_stop_in_reverse_order(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tier in Tier:
        monkeypatch.setitem(GRACE, tier, 60.0)
    supervisor = Supervisor(directory)
    order = directory / "order"
    for tier in Tier:
        up = directory / tier.name
        trap = f"trap 'echo {tier.name} >> \"{order}\"; exit 0' TERM"
        child = shell(tier.name, f"{trap}; : > '{up}'; while :; do sleep 0.02; done")
        child.start()
        wait_for(up.exists)
        supervisor.adopt(tier, child, "")
    supervisor.stop()
    assert order.read_text().split() == ["GATEWAY", "ROOMS", "STORES"]
    assert state.read(directory / RUN_RECORD)["processes"] == []


def test_those_who_ignore_being_asked_are_killed_with_what_they_started(directory: Path) -> None:
    assert sum(GRACE.values()) < 9
    supervisor = Supervisor(directory)
    pid_file = directory / "grandchild"
    child = shell("gateway", f"trap '' TERM; sleep 600 & echo $! > '{pid_file}'; wait; sleep 600")
    child.start()
    wait_for(lambda: pid_file.exists() and pid_file.read_text().strip() != "")
    supervisor.adopt(Tier.GATEWAY, child, "")
    supervisor.stop()
    wait_for(lambda: stale.started_at(int(pid_file.read_text())) is None)


def test_an_urgent_signal_comes_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_URGENT_SECONDS", 60.0)
    lines: list[str] = []
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGQUIT, lambda *_: sys.exit(7))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    child = Child(
        "postgres",
        [sys.executable, "-c", code],
        stop_signal=signal.SIGINT,
        urgent_signal=signal.SIGQUIT,
        output=lambda _, line: lines.append(line),
    )
    child.start()
    wait_for(lambda: bool(lines))
    child.stop(0.2)
    assert child.process.returncode == 7


def test_leftovers_are_ended_by_pid_and_start_time(directory: Path) -> None:
    left = subprocess.Popen(["/bin/sleep", "60"])
    innocent = subprocess.Popen(["/bin/sleep", "60"])
    try:
        entries = [
            {"name": "auth", "pid": left.pid, "started": stale.started_at(left.pid)},
            {"name": "usage", "pid": innocent.pid, "started": "another time"},
        ]
        record = [entry | {"stop_signal": int(signal.SIGTERM)} for entry in entries]
        state.write(directory / RUN_RECORD, {"processes": record})
        assert Supervisor(directory).end_leftovers() == ["auth"]
        assert left.wait(timeout=60) == -signal.SIGTERM
        assert innocent.poll() is None
    finally:
        left.kill()
        innocent.kill()
        left.wait()
        innocent.wait()


def test_a_copied_record_ends_nothing_of_the_original(directory: Path) -> None:
    child = shell("auth", "exec sleep 60")
    child.start()
    try:
        Supervisor(directory).adopt(Tier.ROOMS, child, "")
        with state.scratch() as copy:
            (copy / RUN_RECORD).write_text((directory / RUN_RECORD).read_text())
            assert Supervisor(copy).end_leftovers() == []
        assert child.running
        assert Supervisor(directory).end_leftovers() == ["auth"]
    finally:
        child.kill()


def test_one_whose_start_is_unknown_is_nobodys_leftover() -> None:
    assert not stale.is_alive({"name": "auth", "pid": 2**22 + 1, "started": None})


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux names its boots.")
def test_a_reboot_makes_every_process_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stale.started_at(os.getpid())
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(stale, "_BOOT", tmp_path / "boot_id")
    assert stale.started_at(os.getpid()) != before


def test_another_users_process_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int, _number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(stale, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(stale, "_KILL_SECONDS", 0.1)
    entry = {"name": "auth", "pid": os.getpid(), "started": stale.started_at(os.getpid())}
    assert stale.end([entry | {"stop_signal": int(signal.SIGTERM)}]) == ["auth"]


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux ties a child to its parent.")
def test_a_child_dies_with_a_killed_parent(directory: Path) -> None:
    code = (
        "import time; from suite.processes import Child\n"
        "child = Child('auth', ['/bin/sleep', '600']); child.start()\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with holding(directory, code) as (parent, pid):
        assert stale.started_at(int(pid))
        parent.kill()
        wait_for(lambda: stale.started_at(int(pid)) is None)


def test_a_second_holder_of_the_folder_is_refused_and_the_lock_dies_with_its_holder(
    directory: Path,
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from suite import state\n"
        "with state.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with holding(directory, code) as (holder, _):
        assert state.is_locked(directory)
        sentence = f"already runs from this folder \\(process {holder.pid}"
        with pytest.raises(SuiteError, match=sentence), state.locked(directory):
            pass
        holder.kill()
        holder.wait()
    assert not state.is_locked(directory)
    with state.locked(directory):
        assert state.holder(directory) == str(os.getpid())


def test_a_process_is_gone_only_when_its_ports_are_free(directory: Path) -> None:
    """A killed process whose first thread is dead may hold its ports while the others end."""
    for _ in range(8):
        with holding(directory, LISTENS_WITH_THREADS) as (process, line):
            process.kill()
            while stale.started_at(process.pid) is not None:
                pass
            assert ports.is_free(int(line))
