"""Recorded calls as CSV (RFC 4180) that no spreadsheet takes for formulas."""

import csv
import io
from collections.abc import Iterable
from datetime import datetime

from services.usage.domain.metering import Event

LINE_END = "\r\n"
HEADER = "event_id,time,tool_name,credits"
# What spreadsheets begin a formula with (OWASP, CSV injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_csv(events: Iterable[Event]) -> str:
    """Returns a line for each event, with a line end between lines and none after the last."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=LINE_END)
    for event in events:
        row = (str(event.id), _time(event.time), event.tool_name, str(event.credits))
        writer.writerow(map(harmless, row))
    return text.getvalue().removesuffix(LINE_END)


def harmless(cell: str) -> str:
    """Returns a cell as text to a spreadsheet, whatever it begins with."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
