"""A state folder per test, and suites that run in the background of one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from suite import state
from suite.postgres import EmbeddedPostgres
from tests.suite.terminal import Run


@pytest.fixture
def directory() -> Iterator[Path]:
    """A state folder with a space in its name; a database that had to live elsewhere goes too."""
    with state.scratch("finity test ") as folder:
        yield folder
        EmbeddedPostgres(folder, durable=False).remove()


@pytest.fixture
def start_run(directory: Path) -> Iterator[Callable[..., Run]]:
    """Starts `finity run` as often as a test wants; none is left."""
    runs: list[Run] = []

    def start(**settings: str) -> Run:
        runs.append(Run(directory, **settings))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.terminate()
            run.process.wait(timeout=60)
