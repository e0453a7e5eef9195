"""The two kinds of file: Finity's own columns, and the Azure LLM inference trace."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from suite.errors import SuiteError

DEFAULT_TOOL = "llm-code"
_LARGEST = 2**63 - 1
_LONGEST_NUMBER = 20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONTEXT_TOKENS, _GENERATED_TOKENS = 1000, 100


class RowError(Exception):
    """The row cannot be read as an event; the message says why."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What a row says."""

    user_id: str
    tool_name: str
    credits: int
    time: datetime
    event_id: str = ""
    """Empty: the importer makes it."""


class Layout(Protocol):
    """How rows become events."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What the events depend on besides the file; part of every event id."""

    def draft(self, line: int, text: bytes) -> Draft:
        """Reads a row; RowError if it cannot be."""


class FinityLog:
    """user_id, tool_name, credits, timestamp and perhaps event_id, in any order."""

    COLUMNS = ("user_id", "tool_name", "credits", "timestamp")
    options: Mapping[str, Any] = {"format": "finity"}

    def __init__(self, header: Sequence[str]) -> None:
        self._width = len(header)
        self._at = [header.index(column) for column in self.COLUMNS]
        self._id_at = header.index("event_id") if "event_id" in header else None

    def draft(self, line: int, text: bytes) -> Draft:
        row = _fields(text, self._width)
        user_id, tool_name, spent, timestamp = (row[index] for index in self._at)
        event_id = row[self._id_at] if self._id_at is not None else ""
        return Draft(user_id, tool_name, _number("credits", spent), _time(timestamp), event_id)


class AzureTrace:
    """TIMESTAMP, ContextTokens, GeneratedTokens; users and credits come by rule."""

    COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

    def __init__(self, header: Sequence[str], users: Sequence[str], tool: str) -> None:
        self._width = len(header)
        self._at = [header.index(column) for column in self.COLUMNS]
        self._users = list(users)
        self._tool = tool
        self.options: Mapping[str, Any] = {"format": "azure", "users": self._users, "tool": tool}

    def draft(self, line: int, text: bytes) -> Draft:
        row = _fields(text, self._width)
        timestamp, context, generated = (row[index] for index in self._at)
        spent = credits_of(_number("ContextTokens", context), _number("GeneratedTokens", generated))
        # The first row is line 2.
        user_id = self._users[(line - 2) % len(self._users)]
        return Draft(user_id, self._tool, spent, _time(timestamp))


@dataclass(frozen=True, slots=True)
class Shifted:
    """Another format, with all its times moved so that the newest event is at `newest_at`."""

    layout: Layout
    by: timedelta
    newest_at: datetime

    @property
    def options(self) -> Mapping[str, Any]:
        return {**self.layout.options, "shift_to": self.newest_at.isoformat()}

    def draft(self, line: int, text: bytes) -> Draft:
        draft = self.layout.draft(line, text)
        if draft.event_id:
            raise RowError("it has an event_id, whose time cannot be shifted")
        try:
            return replace(draft, time=_after_epoch(draft.time + self.by))
        except OverflowError:
            raise RowError("its time is out of range") from None


def recognise(header: bytes, users: Sequence[str], tool: str | None) -> Layout:
    """Returns the format of a file with this first line; SuiteError if it has none."""
    columns = [column.strip() for column in header.decode(errors="replace").split(",")]
    if set(FinityLog.COLUMNS) <= set(columns):
        if users or tool:
            raise SuiteError("This file names its users and tools; leave out --user and --tool.")
        return FinityLog(columns)
    if set(AzureTrace.COLUMNS) <= set(columns):
        if not users:
            raise SuiteError("This trace has no users: name at least one with --user ID.")
        return AzureTrace(columns, users, tool or DEFAULT_TOOL)
    expected = " or ".join(",".join(known.COLUMNS) for known in (FinityLog, AzureTrace))
    raise SuiteError(f"The first line must name the columns: {expected}.")


def credits_of(context_tokens: int, generated_tokens: int) -> int:
    """Returns 1 credit per started 1,000 context tokens and per started 100 generated ones."""
    return -(-context_tokens // _CONTEXT_TOKENS) - (-generated_tokens // _GENERATED_TOKENS)


def _fields(text: bytes, width: int) -> list[str]:
    try:
        row = next(csv.reader([text.decode()], strict=True))
    except UnicodeDecodeError:
        raise RowError("it is not UTF-8") from None
    except csv.Error as error:
        raise RowError(f"it is not CSV: {error}") from None
    if len(row) != width:
        raise RowError(f"it has {len(row)} fields where the header has {width}")
    return [field.strip() for field in row]


def _number(name: str, text: str) -> int:
    number = int(text) if text.isdecimal() and len(text) <= _LONGEST_NUMBER else -1
    if not 0 <= number <= _LARGEST:
        raise RowError(f"{name} is not a whole number from 0 on")
    return number


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise RowError("its time is not ISO 8601, e.g. 2026-01-31T09:30:00.123Z") from None
    return _after_epoch(time if time.tzinfo else time.replace(tzinfo=UTC))


def _after_epoch(time: datetime) -> datetime:
    if time < _EPOCH:
        raise RowError("its time is before 1970")
    return time
