"""A file as events: parsed, with their ids."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

from finity.usage.v1 import usage_pb2

from suite.errors import SuiteError
from suite.importing import lines
from suite.importing.ids import Chain
from suite.importing.layouts import Layout, RowError, recognise


@dataclass(frozen=True, slots=True)
class Row:
    """A line as an event, or why it is none."""

    line: int
    event: usage_pb2.UsageEvent | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that travel in one call."""

    number: int
    """From 0, in the order of the file."""
    lines: list[int]
    events: list[usage_pb2.UsageEvent]


def layout_of(path: Path, users: tuple[str, ...], tool: str | None) -> Layout:
    """Returns the format the first line names; SuiteError if it names none."""
    first = next(lines.read(path), None)
    if first is None:
        raise SuiteError("The file is empty.")
    return recognise(first[1], users, tool)


def newest(path: Path, layout: Layout) -> datetime:
    """Returns the time of the newest readable row; SuiteError if there is none."""
    times = (time for number, text in lines.read(path) if (time := _time(layout, number, text)))
    latest = max(times, default=None)
    if latest is None:
        raise SuiteError("The file has no row that can be read.")
    return latest


def read(path: Path, layout: Layout) -> Iterator[Row]:
    """Yields every row that is not empty."""
    chain = Chain(layout.options)
    for number, text in lines.read(path):
        chain.feed(text)
        if number == 1 or not text:
            continue
        try:
            yield Row(number, _event(layout, chain, number, text))
        except RowError as error:
            yield Row(number, None, str(error))


def batches(rows: Iterable[Row], size: int) -> Iterator[Batch]:
    """Packs rows that are events, `size` to a batch."""
    good = ((row.line, row.event) for row in rows if row.event)
    number = 0
    while some := list(islice(good, size)):
        yield Batch(number, [line for line, _ in some], [event for _, event in some])
        number += 1


def _event(layout: Layout, chain: Chain, line: int, text: bytes) -> usage_pb2.UsageEvent:
    draft = layout.draft(line, text)
    return usage_pb2.UsageEvent(
        event_id=draft.event_id or str(chain.event_id(draft.time)),
        user_id=draft.user_id,
        tool_name=draft.tool_name,
        credits=draft.credits,
    )


def _time(layout: Layout, line: int, text: bytes) -> datetime | None:
    if line == 1 or not text:
        return None
    try:
        return layout.draft(line, text).time
    except RowError:
        return None
