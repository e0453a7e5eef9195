"""What the rooms stand on: a database, a Redis and a mail server, embedded or somebody else's."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from suite import readiness
from suite.mail import HOST_SETTING, EmbeddedMail
from suite.postgres import EmbeddedPostgres
from suite.processes import Child
from suite.valkey import EmbeddedValkey

Step = Callable[[str], contextlib.AbstractContextManager[None]]
"""Shows that something is being done, and how long it took."""
Adopt = Callable[[Child | None, int], None]
"""Watches a child that was started and listens on a port."""


class Stores:
    """Those the environment names are used; for the others a server of this checkout is started."""

    def __init__(self, directory: Path, given: Mapping[str, str], *, durable: bool) -> None:
        self._postgres = EmbeddedPostgres(directory, durable)
        self._valkey = EmbeddedValkey(directory)
        self.mail = EmbeddedMail(directory)
        self._own_mail = not given.get(HOST_SETTING)
        self.database_url = given.get("DATABASE_URL", "")
        self.redis_url = given.get("REDIS_URL", "")

    def start(self, step: Step, adopt: Adopt) -> None:
        """Starts or asks each of them."""
        if self.database_url:
            with step("PostgreSQL of DATABASE_URL"):
                readiness.require_database(self.database_url)
        else:
            with step("embedded PostgreSQL"):
                self._postgres.start()
            self.database_url = self._postgres.dsn
            adopt(self._postgres.child, self._postgres.port)
        if self.redis_url:
            with step("Redis of REDIS_URL"):
                readiness.require_redis(self.redis_url)
        else:
            with step("embedded Valkey"):
                self._valkey.start()
            self.redis_url = self._valkey.url
            adopt(self._valkey.child, self._valkey.port)
        if self._own_mail:
            with step("embedded mail server"):
                self.mail.start()
            adopt(self.mail.child, self.mail.port)

    def stop(self) -> None:
        """Stops what was interrupted before it was ready."""
        self.mail.stop()
        self._valkey.stop()
        self._postgres.stop()

    def environment(self) -> dict[str, str]:
        """The settings that lead a process to them."""
        urls = {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}
        return urls | self.mail.environment()
