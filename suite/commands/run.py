"""`finity run`: start everything, show the table, forward the logs until Ctrl-C."""

import os
import time

import click

from suite import state
from suite.console import Prefixed, console, show, step
from suite.supervisor import interruptible


@click.command()
def run() -> None:
    """Run the whole suite until Ctrl-C.

    DATABASE_URL and REDIS_URL are used where they are set; otherwise an embedded
    PostgreSQL and Valkey keep their state in .finity/.
    """
    # Loads the contracts and gRPC, which other commands need not wait for.
    from suite import welcome  # noqa: PLC0415
    from suite.stack import Stack  # noqa: PLC0415

    started = time.monotonic()
    with interruptible():
        try:
            with Stack(state.default_directory(), environment=os.environ, step=step) as stack:
                show(welcome.table(stack))
                console.print(f"[dim]ready after {time.monotonic() - started:.1f} s[/]\n")
                stack.forward(Prefixed())
                stack.watch()
        except KeyboardInterrupt:
            console.print("\nstopped")
