"""`finity forget` deletes what the suite made, and nothing else."""

from pathlib import Path

from suite import credentials, state
from suite.commands import forget
from tests.suite.terminal import finity


def test_a_folder_that_is_no_state_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "thesis.txt").touch()
    ended = finity(tmp_path, "forget", "--yes")
    assert ended.returncode == 1
    assert "is no state folder of a suite; nothing was deleted" in ended.stderr
    assert (tmp_path / "postgres" / "thesis.txt").exists()
    assert not (tmp_path / "lock").exists()


def test_what_the_suite_did_not_make_stays(tmp_path: Path) -> None:
    credentials.load(tmp_path)
    (tmp_path / "thesis.txt").touch()
    ended = finity(tmp_path, "forget", "--yes")
    assert ended.returncode == 0, ended.stderr
    assert "thesis.txt" in ended.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_everything_the_suite_made_goes(tmp_path: Path) -> None:
    directory = state.prepare(tmp_path / "state")
    assert finity(directory, "migrate", "--dry-run").returncode == 0
    (directory / "imports").mkdir()
    for name in (*forget.FILES, ".run.json.half", "imports/note.json"):
        (directory / name).touch()
    (directory / "run.json").write_text("damaged")
    ended = finity(directory, "forget", "--yes")
    assert ended.returncode == 0, ended.stderr
    assert not directory.exists()


def test_without_a_yes_nothing_goes(tmp_path: Path) -> None:
    credentials.load(tmp_path)
    assert finity(tmp_path, "forget").returncode == 1
    assert (tmp_path / credentials.FILE).exists()
