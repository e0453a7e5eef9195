"""Whichever database a command of `finity` is about."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from chassis import migrate
from suite import credentials, state
from suite.postgres import EmbeddedPostgres
from suite.rooms import ROOMS
from suite.supervisor import RUN_RECORD

MIGRATIONS = tuple(migrate.Room(room.name, room.migrations) for room in ROOMS)


def url_in_use(directory: Path, environment: Mapping[str, str]) -> str:
    """Returns DATABASE_URL, or the URL of the suite that runs here; "" if there is neither."""
    if environment.get("DATABASE_URL"):
        return environment["DATABASE_URL"]
    if state.is_locked(directory):
        return str(state.read(directory / RUN_RECORD).get("database_url", ""))
    return ""


@contextlib.contextmanager
def reachable_url(directory: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The same, or the embedded PostgreSQL, started for as long as it is needed."""
    url = url_in_use(directory, environment)
    if url:
        yield url
        return
    with state.locked(directory):
        # Every folder with a database has them: `finity forget` knows its own by them.
        credentials.load(directory)
        server = EmbeddedPostgres(directory, durable=True)
        try:
            server.start()
            yield server.dsn
        finally:
            server.stop()
