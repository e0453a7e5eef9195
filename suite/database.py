"""Whichever database a command of `finity` is about."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from chassis import migrate
from chassis.settings import is_development_database
from suite import credentials, state
from suite.errors import SuiteError
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


def require_own_database(environment: Mapping[str, str]) -> None:
    """Raises SuiteError, naming DATABASE_URL, in production without a database of its own."""
    if environment.get("FINITY_ENV") != "production":
        return
    url = environment.get("DATABASE_URL", "")
    if not url:
        raise SuiteError("FINITY_ENV=production needs DATABASE_URL; there is no embedded database.")
    if is_development_database(url):
        raise SuiteError("FINITY_ENV=production: DATABASE_URL still has the development password.")


@contextlib.contextmanager
def reachable_url(directory: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The same, or the embedded PostgreSQL, started for as long as it is needed."""
    require_own_database(environment)
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
