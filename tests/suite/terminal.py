"""The suite as a person at a terminal meets it: commands, their output, signals."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from suite import addresses
from suite.state import ROOT, STATE_SETTING


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Fails the test if the condition does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def plain_environment(directory: Path, **settings: str) -> dict[str, str]:
    """This process' environment without its stores, and the folder of the test."""
    inherited = {k: v for k, v in os.environ.items() if k not in {"DATABASE_URL", "REDIS_URL"}}
    search = os.pathsep.join([str(ROOT), str(ROOT / "gen")])
    return inherited | {STATE_SETTING: str(directory), "PYTHONPATH": search} | settings


def finity(directory: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a `finity` command to its end."""
    return run(
        [sys.executable, "-m", "suite", *arguments], plain_environment(directory, **settings)
    )


def run(
    command: list[str], environment: dict[str, str], account: tuple[int, int] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, as another user if an account is given."""
    return subprocess.run(  # noqa: S603 - the test's own command
        command,
        env=environment,
        cwd=ROOT,
        user=account[0] if account else None,
        group=account[1] if account else None,
        extra_groups=[] if account else None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextlib.contextmanager
def holding(directory: Path, code: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs Python code with the folder as its argument; gives its process and first line."""
    command = [sys.executable, "-c", code, str(directory)]
    with subprocess.Popen(  # noqa: S603 - the test's own command
        command, env=plain_environment(directory), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


class Run:
    """`finity run` in the background, its output in a file."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.addresses = addresses.free()
        self._log = directory / "run.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "suite", "run"],
                env=plain_environment(directory, **(self.addresses.environment() | settings)),
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_until_ready(self) -> Self:
        wait_for(lambda: "ready after" in self.output or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.output
        return self

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Sends the signal and returns the exit code, which has to come within a minute."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)
