"""What an import will do, decided before the first row is sent."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from suite.importing import lines, rows
from suite.importing.checkpoint import Checkpoint
from suite.importing.layouts import Layout, Shifted


@dataclass(frozen=True, slots=True)
class Plan:
    """A surveyed file and how its rows become events."""

    path: Path
    layout: Layout
    checkpoint: Checkpoint
    rows: int
    """Lines after the header."""
    shift_to: datetime | None
    """When the newest event is said to have happened; None leaves the times alone."""


def make(
    path: Path,
    *,
    directory: Path,
    users: tuple[str, ...] = (),
    tool: str | None = None,
    shift_to: datetime | None = None,
    shift_to_now: bool = False,
) -> Plan:
    """
    Surveys a file; SuiteError if it is none that can be imported.

    `shift_to_now` takes the time of the first run with this file and these options,
    which its checkpoint under `directory` remembers.
    """
    layout = rows.layout_of(path, users, tool)
    survey = lines.survey(path)
    request = "now" if shift_to_now else isoformat(shift_to)
    checkpoint = Checkpoint(directory, survey.digest, {**layout.options, "shift": request})
    if shift_to_now:
        shift_to = _first_time(checkpoint)
    if shift_to:
        layout = Shifted(layout, shift_to - rows.newest(path, layout), shift_to)
    return Plan(path, layout, checkpoint, survey.rows, shift_to)


def isoformat(time: datetime | None) -> str:
    """Returns the time as --shift-to takes it; "" for none."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z") if time else ""


def _first_time(checkpoint: Checkpoint) -> datetime:
    if not checkpoint.shift_to:
        checkpoint.remember_shift(isoformat(datetime.now(UTC).replace(microsecond=0)))
    return datetime.fromisoformat(checkpoint.shift_to)
