"""What the suite tells its processes, and a database that two checkouts share."""

import os
import sys
from pathlib import Path

import pytest

from chassis.settings import DEVELOPMENT_SECRET, SettingsError
from suite import credentials, envoy, production, state
from suite.addresses import free
from suite.errors import SuiteError
from suite.postgres import EmbeddedPostgres
from suite.stack import Stack
from tests.suite.terminal import finity

URL = "postgresql://somebody@somewhere/db"


def test_the_callers_secret_wins_and_a_given_database_gets_the_shared_one(tmp_path: Path) -> None:
    mine = credentials.load(tmp_path)
    given = {"FINITY_SECRET": "of the caller", "DATABASE_URL": URL}
    assert mine.environment("auth", given)["FINITY_SECRET"] == "of the caller"
    shared = mine.environment("auth", {"DATABASE_URL": URL})["FINITY_SECRET"]
    assert shared == DEVELOPMENT_SECRET
    assert mine.environment("auth", {})["FINITY_SECRET"] == mine.secret


def test_two_checkouts_run_on_one_database(directory: Path) -> None:
    server = EmbeddedPostgres(directory, durable=False)
    server.start()
    inherited = {k: v for k, v in os.environ.items() if k not in {"FINITY_SECRET", "REDIS_URL"}}
    environment = inherited | {"DATABASE_URL": server.dsn}
    emails, administers = set(), []
    try:
        for _ in range(2):
            with (
                state.scratch() as folder,
                Stack(folder, environment=environment, addresses=free(), gateway=False) as stack,
            ):
                emails.add(stack.credentials.admin_email)
                administers.append(stack.administers)
    finally:
        server.stop()
    assert len(emails) == 2
    # Only the first administrator of a database is made by a service.
    assert administers == [True, False]


def test_credentials_are_made_under_the_lock(directory: Path) -> None:
    stack = Stack(directory, environment={}, addresses=free())
    with state.locked(directory), pytest.raises(SuiteError, match="already runs"):
        stack.__enter__()
    assert not (directory / credentials.FILE).exists()


def test_production_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    ended = finity(tmp_path / "state", "run", FINITY_ENV="production")
    assert ended.returncode == 1
    assert "FINITY_ENV=production is not for this command" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "state").exists()


def test_envoy_gets_the_threads_of_the_setting() -> None:
    assert envoy.concurrency({"FINITY_GATEWAY_CONCURRENCY": "5"}) == 5
    assert envoy.concurrency({}) == 2
    with pytest.raises(SettingsError, match="GATEWAY_CONCURRENCY"):
        envoy.concurrency({"FINITY_GATEWAY_CONCURRENCY": "0"})


def test_help_names_what_a_person_can_type(tmp_path: Path) -> None:
    assert "Usage: .venv/bin/finity" in finity(tmp_path, "--help").stdout


def test_stores_that_are_not_there_have_a_code_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "postgresql://a@127.0.0.1:1/b", "redis://127.0.0.1:1"])
    with pytest.raises(SystemExit) as ended:
        production.main()
    assert ended.value.code == production.NOT_THERE == 3
