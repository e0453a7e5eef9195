"""Bars of a terminal's characters."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta

from rich.table import Table

_EIGHTHS = " ▏▎▍▌▋▊▉█"
WIDTH = 36
"""Characters of the longest bar."""


def slots(times: Iterable[datetime], minutes: int) -> Counter[datetime]:
    """Counts the times by the slot of so many minutes (a divisor of 60) they fall into."""
    width = timedelta(minutes=minutes)
    return Counter(
        time
        - timedelta(minutes=time.minute, seconds=time.second, microseconds=time.microsecond) % width
        for time in times
    )


def bars(counts: Counter[datetime]) -> Table:
    """Draws a bar per slot in order of time; the highest is marked."""
    rows = Table(box=None, show_header=False, padding=(0, 0, 0, 3))
    rows.add_column(style="dim")
    rows.add_column(min_width=WIDTH, no_wrap=True)
    rows.add_column(justify="right")
    most = max(counts.values(), default=1)
    for slot, count in sorted(counts.items()):
        colour = "bold yellow" if count == most else "cyan"
        shown = bar(count / most)
        rows.add_row(f"{slot:%H:%M}", f"[{colour}]{shown}[/]", f"{count:,}")
    return rows


def bar(share: float) -> str:
    """Returns a bar of `share` (0 to 1) of the full width, to an eighth of a character."""
    whole, rest = divmod(round(share * WIDTH * 8), 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")
