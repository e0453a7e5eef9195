"""Users in a file, one a line: CSV with a header, or JSON objects."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finity.auth.v1 import auth_pb2, password_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from suite.errors import SuiteError
from suite.importing import lines

FIELDS = ("email", "role", "email_verified", "create_time", "password_hash")
_ROLES = {
    "": auth_pb2.ROLE_UNSPECIFIED,
    "free": auth_pb2.ROLE_FREE,
    "pro": auth_pb2.ROLE_PRO,
    "admin": auth_pb2.ROLE_ADMIN,
}
_FLAGS = {"": False, "false": False, "0": False, "true": True, "1": True}


@dataclass(frozen=True, slots=True)
class Row:
    """A line as a user, or why it is none."""

    line: int
    user: password_pb2.ImportedUser | None
    problem: str = ""


def read(path: Path) -> Iterator[Row]:
    """Yields every line that is not empty; SuiteError if the first one is of no known kind."""
    header: list[str] | None = None
    for number, text in lines.read(path):
        if number == 1 and not text.lstrip().startswith(b"{"):
            header = _header(text)
        elif text.strip():
            yield _row(number, text, header)


def _header(text: bytes) -> list[str]:
    names = [name.strip() for name in _cells(text.decode(errors="replace"))]
    if "email" not in names or not set(names) <= set(FIELDS) or len(set(names)) < len(names):
        raise SuiteError(
            "The first line must be a JSON object or name the columns of a CSV file: email and"
            f" any of {', '.join(FIELDS[1:])}."
        )
    return names


def _row(number: int, text: bytes, header: list[str] | None) -> Row:
    try:
        return Row(number, _user(_fields(text.decode(), header)))
    except (ValueError, OverflowError) as error:
        # A decoder's own words could quote a hash.
        known = type(error) is ValueError
        return Row(number, None, str(error) if known else "The line cannot be read.")


def _fields(text: str, header: list[str] | None) -> Mapping[str, Any]:
    if header is None:
        fields = json.loads(text)
        if not isinstance(fields, dict) or not set(fields) <= set(FIELDS):
            raise ValueError(f"A line is one object with any of {', '.join(FIELDS)}.")
        return fields
    cells = _cells(text)
    if len(cells) != len(header):
        raise ValueError(f"The line has {len(cells)} columns, the header {len(header)}.")
    return dict(zip(header, cells, strict=True))


def _cells(text: str) -> list[str]:
    try:
        return next(csv.reader([text]), [])
    except csv.Error as error:
        raise ValueError("The line is not CSV.") from error


def _user(fields: Mapping[str, Any]) -> password_pb2.ImportedUser:
    said = {name: fields.get(name) for name in FIELDS}
    text = {name: "" if value is None else str(value).strip() for name, value in said.items()}
    if text["role"].lower() not in _ROLES:
        raise ValueError("role is free, pro or admin.")
    if text["email_verified"].lower() not in _FLAGS:
        raise ValueError("email_verified is true or false.")
    return password_pb2.ImportedUser(
        email=text["email"],
        role=_ROLES[text["role"].lower()],
        email_verified=_FLAGS[text["email_verified"].lower()],
        create_time=_time(text["create_time"]) if text["create_time"] else None,
        password_hash=text["password_hash"],
    )


def _time(text: str) -> Timestamp:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("create_time is an ISO 8601 time.") from error
    stamp = Timestamp()
    stamp.FromDatetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return stamp
