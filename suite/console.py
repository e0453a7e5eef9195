"""What a person sees of the suite: a line per step, then a coloured column per process."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red", "bright_cyan")
_NAME_WIDTH = 9
_STEP_WIDTH = 60

console = Console(highlight=False, soft_wrap=True)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Prints the step with its seconds once it is done, or marked as failed."""
    started = time.monotonic()
    try:
        yield
    except BaseException:
        console.print(f"  [red]✗[/] {escape(title)}")
        raise
    seconds = time.monotonic() - started
    console.print(f"  [green]✓[/] {escape(title):<{_STEP_WIDTH}} [dim]{seconds:5.1f} s[/]")


def show(table: Table) -> None:
    """Prints a table without rich's trailing blanks: in copied commands "\\" must end its line."""
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()


class Prefixed:
    """Prints each process' lines behind its name, in a colour of its own."""

    def __init__(self) -> None:
        self._prefixes: dict[str, str] = {}

    def __call__(self, name: str, line: str) -> None:
        # Written by hand: a storm of lines must not cost a renderer each.
        sys.stdout.write(f"{self._prefix(name)}{line}\n")
        sys.stdout.flush()

    def _prefix(self, name: str) -> str:
        if name not in self._prefixes:
            colour = _COLOURS[len(self._prefixes) % len(_COLOURS)]
            with console.capture() as capture:
                console.print(f"[{colour}]{name:<{_NAME_WIDTH}}[/] │ ", end="")
            self._prefixes[name] = capture.get()
        return self._prefixes[name]
