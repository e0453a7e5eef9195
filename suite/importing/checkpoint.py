"""
The note a broken-off import leaves in .finity/imports/, so that the next run starts behind it.

It may be lost or wrong: the event ids keep every row from being recorded twice, and
its last batch is sent again to see that this database has it (see importer).
"""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suite import state
from suite.errors import SuiteError
from suite.importing.rows import Batch

_SAVE_SECONDS = 0.25


class Checkpoint:
    """How far the rows are recorded without a gap, for one file with one set of options."""

    def __init__(self, directory: Path, digest: str, options: Mapping[str, Any]) -> None:
        """`directory` is the suite's state folder, `digest` the file's."""
        key = json.dumps([digest, dict(options)], sort_keys=True).encode()
        self._folder = directory / "imports"
        self._path = self._folder / f"{hashlib.sha256(key).hexdigest()[:32]}.json"
        try:
            self._record = state.read(self._path)
        except SuiteError:
            self._record = {}
        self._saved = time.monotonic()
        self._next = 0
        self._ended: dict[int, tuple[int, int]] = {}
        self._broken = False

    @property
    def last_batch(self) -> range:
        """Lines of the last batch up to which everything was recorded; empty if unknown."""
        try:
            return range(self._record["first_line"], self._record["last_line"] + 1)
        except (KeyError, TypeError):
            return range(0)

    @property
    def shift_to(self) -> str:
        """The time that --shift-to-now chose; "" if it was not used yet."""
        return str(self._record.get("shift_to", ""))

    def remember_shift(self, shift_to: str) -> None:
        """Keeps the time that --shift-to-now chose."""
        self._record["shift_to"] = shift_to
        self._save()

    def answered(self, batch: Batch, *, recorded: bool) -> None:
        """Notes a batch and whether all its rows are recorded; batches may come in any order."""
        # A rejected row may be accepted next time: nothing from there on is skipped.
        self._broken = self._broken or not recorded
        if self._broken:
            return
        self._ended[batch.number] = (batch.lines[0], batch.lines[-1])
        while self._next in self._ended:
            first, last = self._ended.pop(self._next)
            self._record |= {"first_line": first, "last_line": last}
            self._next += 1
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self._save()

    def forget_progress(self) -> None:
        """The import ran to its end: the next run of the same file shows every row again."""
        self._record.pop("first_line", None)
        self._record.pop("last_line", None)
        if self._record:
            self._save()
        else:
            self._path.unlink(missing_ok=True)

    def _save(self) -> None:
        self._saved = time.monotonic()
        try:
            state.prepare(self._folder)
            state.write(self._path, self._record)
        except (SuiteError, OSError):
            # Nothing but time is lost without it.
            return
