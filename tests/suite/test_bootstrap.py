"""The stamps of .venv: none claims what another install replaced."""

from pathlib import Path

import pytest

from suite import bootstrap


def test_stamps_of_other_versions_go_before_an_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bootstrap.VENV.mkdir()
    bootstrap.PROJECT.touch()
    for name in ("own", "current", "older", "gone"):
        lock_file = Path(f"{name}.txt")
        lock_file.write_text(name)
        stamp = bootstrap.VENV / f"{name}.txt.installed"
        stamp.write_text(bootstrap.digest(lock_file, bootstrap.PROJECT))
    Path("older.txt").write_text("newer")
    Path("gone.txt").unlink()
    bootstrap.remove_outdated_stamps(bootstrap.VENV / "own.txt.installed")
    assert [stamp.name for stamp in bootstrap.VENV.iterdir()] == ["current.txt.installed"]
