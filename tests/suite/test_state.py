"""The state folder: its mode, its records."""

import os
from pathlib import Path

import pytest

from suite import state
from suite.errors import SuiteError


def test_only_a_folder_it_made_gets_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    state.prepare(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    before = os.umask(0o077)
    try:
        made = state.prepare(tmp_path / "state")
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o777 == 0o755


def test_a_record_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "run.json"
    names_at_sync: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: names_at_sync.append(record.exists()))
    state.write(record, {"a": 1})
    assert names_at_sync == [False]
    assert state.read(record) == {"a": 1}


@pytest.mark.parametrize("content", ["", "{", "5"])
def test_a_damaged_record_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(SuiteError, match="is damaged"):
        state.read(tmp_path / "run.json")
