"""Reading a file line by line in constant memory: one line is one row."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LONGEST_LINE = 64 * 1024
"""Bytes; what a longer line has beyond them is passed over."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Survey:
    """What one pass over a file tells."""

    rows: int
    """Lines after the header, empty ones too."""
    digest: str
    """SHA-256 of the lines, hex; the same whatever ends the lines."""


def read(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from 1, line without its end and without a byte order mark)."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            rest = line
            while len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
                rest = file.readline(LONGEST_LINE)
            yield number, (line.removeprefix(_BOM) if number == 1 else line).rstrip(b"\r\n")


def survey(path: Path) -> Survey:
    """Counts and digests a file."""
    digest = hashlib.sha256()
    count = 0
    for count, line in read(path):  # noqa: B007 - the last number is the count
        digest.update(line + b"\n")
    return Survey(max(count - 1, 0), digest.hexdigest())
