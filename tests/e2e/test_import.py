"""`finity usage import` against a running suite: its own process, killed and resumed."""

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from chassis.ids import uuid7, uuid7_time
from suite import state
from suite.addresses import free
from suite.credentials import DEVELOPER
from suite.demo.client import Gateway
from suite.errors import SuiteError
from suite.importing import plan
from suite.rooms import ROOMS
from suite.stack import Stack
from suite.state import ROOT
from tests.suite.terminal import finity, plain_environment

TRACE = ROOT / "examples" / "AzureLLMInferenceTrace_code.csv"
USAGE = next(room for room in ROOMS if room.name == "usage")
NOW = datetime.now(UTC).replace(microsecond=0)
IMPORT = [sys.executable, "-m", "suite", "usage", "import"]
HEADER = "user_id,tool_name,credits,timestamp"
Recorded = Counter[tuple[str, int, datetime]]


@pytest.fixture(scope="module")
def stack(stores: dict[str, str]) -> Iterator[Stack]:
    """The suite as processes of its own, on a database of its own."""
    with state.scratch("finity import ") as directory:
        environment = plain_environment(directory, FINITY_SIGNUP_CREDITS="0", **stores)
        with Stack(directory, environment=environment, addresses=free(), durable=False) as running:
            yield running


def new_user(stack: Stack, credits: int) -> str:
    """Registers somebody with exactly these credits."""
    body = {"email": f"{uuid7(NOW)}@example.com", "password": "correct horse"}
    user_id = str(Gateway(stack.gateway_url).post("/v1/users", body)["user"]["user_id"])
    grant(stack, user_id, credits, "start")
    return user_id


def grant(stack: Stack, user_id: str, credits: int, ref: str) -> None:
    key = stack.credentials.service_keys[DEVELOPER]
    body = {"amount": str(credits), "source": "test", "source_ref": ref}
    Gateway(stack.gateway_url).post(f"/v1/users/{user_id}/credits:grant", body, key)


def recorded(stack: Stack, user_id: str) -> Recorded:
    """What the database holds of a user's usage."""
    query = 'SELECT tool_name, credits_used, "timestamp" FROM tool_usage WHERE user_id = $1'
    return Counter(tuple(row) for row in ask(stack, query, UUID(user_id)))


def ask(stack: Stack, query: str, *arguments: object) -> list[asyncpg.Record]:
    async def fetch() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(stack.database_url.partition("?")[0])
        try:
            return list(await connection.fetch(query, *arguments))
        finally:
            await connection.close()

    return asyncio.run(fetch())


def write_log(path: Path, user_id: str, rows: range) -> Recorded:
    """Writes rows of which many are equal and returns what they should become."""
    events = [(f"tool.{row % 3}", row % 2, NOW - timedelta(seconds=row // 10)) for row in rows]
    text = [f"{user_id},{tool},{spent},{at.isoformat()}" for tool, spent, at in events]
    path.write_text("\n".join([HEADER, *text]) + "\n")
    return Counter(events)


def importing(stack: Stack, *arguments: object, **settings: str) -> tuple[int, str]:
    """Runs the import to its end; returns exit code and output."""
    ended = finity(stack.directory, "usage", "import", *map(str, arguments), **settings)
    return ended.returncode, ended.stdout + ended.stderr


def counts(output: str) -> dict[str, int]:
    """Reads the summary's numbers."""
    found = re.findall(r"^ *(accepted|duplicate|skipped|rejected) +([\d,]+)", output, re.MULTILINE)
    return {name: int(number.replace(",", "")) for name, number in found}


def start_import(stack: Stack, path: Path, until: int, user_id: str) -> subprocess.Popen[bytes]:
    """Starts an import and returns once so many of its rows are recorded."""
    process = subprocess.Popen(  # noqa: S603 - our own command
        [*IMPORT, str(path)],
        env=plain_environment(stack.directory),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    query = "SELECT count(*) FROM tool_usage WHERE user_id = $1"
    while ask(stack, query, UUID(user_id))[0][0] < until:
        assert process.poll() is None
        time.sleep(0.02)
    return process


def wait_for_note(stack: Stack, process: subprocess.Popen[bytes]) -> None:
    """Returns once the import has left a checkpoint that would skip something."""
    while not any(
        state.read(note).get("first_line", 0) > 2
        for note in (stack.directory / "imports").glob("*.json")
    ):
        assert process.poll() is None
        time.sleep(0.01)


def test_a_second_run_records_nothing_again_and_a_grown_log_only_its_new_rows(
    stack: Stack, tmp_path: Path
) -> None:
    user_id, log = new_user(stack, 10_000), tmp_path / "a log.csv"
    expected = write_log(log, user_id, range(2500))
    code, output = importing(stack, log)
    assert (code, counts(output)) == (0, {"accepted": 2500, "duplicate": 0, "rejected": 0})
    assert "events/s" in output
    assert recorded(stack, user_id) == expected

    code, output = importing(stack, log)
    assert (code, counts(output)) == (0, {"accepted": 0, "duplicate": 2500, "rejected": 0})

    # Through a pipe, with other line ends and ten rows more.
    expected = write_log(log, user_id, range(2510))
    log.write_bytes(log.read_bytes().replace(b"\n", b"\r\n"))
    piped = subprocess.run(  # noqa: S603 - our own command
        [*IMPORT, "-"],
        env=plain_environment(stack.directory),
        cwd=ROOT,
        input=log.read_bytes(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert counts(piped.stdout.decode()) == {"accepted": 10, "duplicate": 2500, "rejected": 0}
    assert recorded(stack, user_id) == expected


def test_killed_in_the_middle_and_resumed_every_row_is_recorded_once(
    stack: Stack, tmp_path: Path
) -> None:
    user_id, log = new_user(stack, 1_000_000), tmp_path / "log.csv"
    expected = write_log(log, user_id, range(150_000))
    process = start_import(stack, log, 1, user_id)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 1
    process = start_import(stack, log, 1, user_id)
    wait_for_note(stack, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 0 < recorded(stack, user_id).total() < expected.total()

    code, output = importing(stack, log)
    assert code == 0, output
    assert counts(output)["skipped"] > 0
    assert recorded(stack, user_id) == expected
    # Nothing is left of an import that ran to its end.
    assert not list((stack.directory / "imports").iterdir())


def test_a_checkpoint_of_rows_the_database_lost_is_not_believed(
    stack: Stack, tmp_path: Path
) -> None:
    user_id, log = new_user(stack, 1_000_000), tmp_path / "log.csv"
    expected = write_log(log, user_id, range(100_000))
    process = start_import(stack, log, 1_000, user_id)
    wait_for_note(stack, process)
    process.kill()
    process.wait()
    ask(stack, "DELETE FROM tool_usage WHERE user_id = $1", UUID(user_id))

    code, output = importing(stack, log)
    assert code == 0, output
    assert "skipped" not in output
    assert recorded(stack, user_id) == expected


@pytest.mark.parametrize("killed", [False, True])
def test_the_service_may_restart_meanwhile(stack: Stack, tmp_path: Path, killed: bool) -> None:
    user_id, log = new_user(stack, 1_000_000), tmp_path / "log.csv"
    expected = write_log(log, user_id, range(20_000))
    process = start_import(stack, log, 5_000, user_id)
    if killed:
        stack.children[USAGE.name].kill()
    else:
        stack.stop_room(USAGE)
    stack.start_room(USAGE)
    assert process.wait(timeout=30) == 0
    assert recorded(stack, user_id) == expected


def test_bad_rows_are_told_by_cause_and_line_and_sink_nothing(stack: Stack, tmp_path: Path) -> None:
    user_id, log = new_user(stack, 10), tmp_path / "log.csv"
    at, event_id = NOW.isoformat(), str(uuid7(NOW - timedelta(hours=1)))
    rows = [
        "tool_name,credits,timestamp,user_id,event_id",
        f"good,3,{at},{user_id},",
        f'"unclosed,3,{at},{user_id},',
        f"few,3,{at}",
        f"half,2.5,{at},{user_id},",
        f"when,1,yesterday,{user_id},",
        f"old,1,2020-01-01T00:00:00Z,{user_id},",
        f"not a tool,1,{at},{user_id},",
        f"nobody,1,{at},{uuid7(NOW)},",
        "",
        f"own,4,{at},{user_id},{event_id}",
        f"other,4,{at},{user_id},{event_id}",
        f"dear,4,{at},{user_id},",
        f"long,1,{at},{user_id},{'x' * 200_000}",
        f"good,3,{at},{user_id},",
    ]
    log.write_bytes("\n".join(rows).encode() + f"\n\xff\xfe,1,{at},{user_id},".encode("latin-1"))
    code, output = importing(stack, log)
    assert (code, counts(output)) == (3, {"accepted": 3, "duplicate": 0, "rejected": 11}), output
    for cause in (
        r"UNREADABLE_ROW, 1 row: line 3\n   it is not CSV: .*\n",
        r"UNREADABLE_ROW, 1 row: line 4\n   it has 3 fields where the header has 5\n",
        r"UNREADABLE_ROW, 1 row: line 5\n   credits is not a whole number from 0 on\n",
        r"UNREADABLE_ROW, 1 row: line 6\n   its time is not ISO 8601.*\n",
        r"EVENT_TIME_OUT_OF_RANGE, 1 row: line 7\n   .*\n",
        r"INVALID_REQUEST, 1 row: line 8\n   tool_name: .*\n",
        r"ACCOUNT_NOT_OPEN, 1 row: line 9\n   .*\n",
        r"EVENT_ID_REUSED, 1 row: line 12\n   .*\n",
        r"NO_CREDITS, 1 row: line 13\n   .*\n",
        r"INVALID_REQUEST, 1 row: line 14\n   event_id: .*\n",
        r"UNREADABLE_ROW, 1 row: line 16\n   it is not UTF-8\n",
    ):
        assert re.search(cause, output), (cause, output)
    assert recorded(stack, user_id)["own", 4, uuid7_time(UUID(event_id))] == 1

    # What was refused for want of credits is recorded once there are some.
    grant(stack, user_id, 4, "more")
    _, output = importing(stack, log)
    assert counts(output) == {"accepted": 1, "duplicate": 3, "rejected": 10}
    assert recorded(stack, user_id).total() == 4


def test_the_azure_trace_is_shifted_dealt_out_and_priced(stack: Stack, tmp_path: Path) -> None:
    users = [new_user(stack, 100_000) for _ in range(2)]
    trace = tmp_path / "trace.csv"
    lines = TRACE.read_text().splitlines()
    # 4,808 context and 10 generated tokens, then 3,180 and 8: 5 + 1 and 4 + 1 credits.
    trace.write_text("\n".join(lines[:401]))
    options = [argument for user in users for argument in ("--user", user)]
    code, output = importing(stack, trace, *options, "--tool", "chat", "--shift-to-now")
    assert (code, counts(output)["accepted"]) == (0, 400), output
    shift = re.search(r"--shift-to (\S+)", output)
    assert shift
    first, second = (recorded(stack, user) for user in users)
    assert (first.total(), second.total()) == (200, 200)
    newest = datetime.fromisoformat(shift[1])
    assert max(time for _, _, time in first | second) == newest
    assert min(first, key=lambda event: event[2])[:2] == ("chat", 6)
    assert min(second, key=lambda event: event[2])[:2] == ("chat", 5)

    _, output = importing(stack, trace, *options, "--tool", "chat", "--shift-to-now")
    assert counts(output)["duplicate"] == 400
    for note in (stack.directory / "imports").iterdir():
        note.unlink()
    _, output = importing(stack, trace, *options, "--tool", "chat", "--shift-to", shift[1])
    assert counts(output)["duplicate"] == 400


def test_what_cannot_be_imported_is_told_in_one_sentence(stack: Stack, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.touch()
    assert importing(stack, log) == (1, "Error: The file is empty.\n")
    log.write_text("a,b\n1,2\n")
    with pytest.raises(SuiteError, match="must name the columns: user_id,tool_name"):
        plan.make(log, directory=stack.directory)
    with pytest.raises(SuiteError, match="name at least one with --user ID"):
        plan.make(TRACE, directory=stack.directory)
    log.write_text(f"{HEADER}\n{uuid7(NOW)},tool,1,{NOW.isoformat()}\n")
    with pytest.raises(SuiteError, match="leave out --user"):
        plan.make(log, directory=stack.directory, users=("x",))
    code, output = importing(stack, log, FINITY_SERVICE_KEY="wrong")
    assert code == 1
    assert "refuses the service key" in output
    code, output = importing(stack, log, FINITY_USAGE_ADDRESS=f"127.0.0.1:{free().gateway_port}")
    assert code == 1
    assert "gave no answer for 3 s" in output
    with state.scratch() as empty:
        ended = finity(empty, "usage", "import", str(log))
    assert ended.returncode == 1
    assert "Start one with `make run`, or set FINITY_USAGE_ADDRESS" in ended.stderr
