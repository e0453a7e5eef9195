"""
EmbeddedPostgres: a PostgreSQL server of this checkout.

It listens on a free port of the loopback, with a password, and on no Unix socket: a
path with spaces or of more than 107 bytes is no trouble.
"""

import secrets
import shutil
import signal
from pathlib import Path
from urllib.parse import urlunsplit

from suite import cluster, ports, state, unprivileged
from suite.errors import SuiteError
from suite.processes import Child

START_SECONDS = 60.0  # replaying the log of a crash takes its time
_PORT_ATTEMPTS = 3

_COMMON = {
    "listen_addresses": ports.LOOPBACK,
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Services answer for failed statements; the server reports about itself only.
    "log_min_messages": "log",
    "log_checkpoints": "off",
    # Several processes of each room, each with its pool; a bench has those of its peers besides.
    "max_connections": "200",
}
_DURABLE = {
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    # So much of the log is used again. With less its files of 16 MB are made anew after a quiet
    # time, one a second under load, and every write waits some 60 ms for each.
    "min_wal_size": "1GB",
}
_DISPOSABLE = {
    "shared_buffers": "128MB",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
}


class EmbeddedPostgres:
    """
    One server over one state folder; start and stop it as often as you like.

    `durable` False trades crash safety for speed: for tests, whose data nobody misses.
    """

    def __init__(self, state_dir: Path, durable: bool) -> None:
        self._directory = state_dir
        self._record = state_dir / "postgres.json"
        self._home = state_dir / "postgres"
        self._durable = durable
        self._password = ""
        self.port = 0
        self.child: Child | None = None

    @property
    def dsn(self) -> str:
        """The DATABASE_URL of finity_db, whose owner is a superuser as in docker-compose.yml."""
        return self.dsn_of(cluster.DATABASE)

    def dsn_of(self, database: str) -> str:
        """The URL of any database of this server."""
        netloc = f"{cluster.USER}:{self._password}@{ports.LOOPBACK}:{self.port}"
        return urlunsplit(("postgresql", netloc, database, "schema=public", ""))

    def start(self) -> None:
        """Makes the cluster if there is none, starts the server and waits until it answers."""
        kept = state.read(self._record)
        self._password = kept.get("password") or secrets.token_urlsafe(32)
        home = cluster.find(self._home)
        if not home.data.exists():
            # The password first: data without it would be of no use.
            self._save(home)
            home.make(self._password, self._durable)
        elif not kept.get("password"):
            raise SuiteError(
                f"{self._record} has lost the password of the database in {home.home}: restore the"
                " file, or delete the database with `.venv/bin/finity forget`."
            )
        # In a copied checkout the record is about the original's server, which may well run.
        ours = kept.get("home") == str(home.home.resolve())
        home.end_leftover(kept.get("process", {}) if ours else {})
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self.port = ports.free_port(kept.get("port"))
            try:
                self._serve(home)
                break
            except SuiteError:
                # Somebody took the port in between; anything else fails again.
                if attempt == _PORT_ATTEMPTS or ports.is_free(self.port):
                    raise
        self._save(home)
        home.make_database(self.port, self._password)

    def stop(self, seconds: float = 5.0) -> None:
        """Stops the server: sessions are cut, data is complete on disk."""
        if self.child:
            self.child.stop(seconds)

    def remove(self) -> None:
        """Stops the server and deletes its data, wherever it is."""
        self.stop()
        # Not the home of the record: in a copied checkout that is the original's.
        for place in unprivileged.places(self._home):
            shutil.rmtree(place, ignore_errors=True)
        self._record.unlink(missing_ok=True)

    def _save(self, home: cluster.Cluster) -> None:
        record = {"home": str(home.home.resolve()), "port": self.port, "password": self._password}
        process = {"process": self.child.record()} if self.child and self.child.running else {}
        state.write(self._record, record | process)

    def _serve(self, home: cluster.Cluster) -> None:
        settings = _COMMON | (_DURABLE if self._durable else _DISPOSABLE)
        settings["port"] = str(self.port)
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        child = Child(
            "postgres",
            [str(home.programs / "postgres"), "-D", str(home.data), *options],
            environment=cluster.environment(),
            directory=Path("/"),
            account=home.account,
            # Fast shutdown, then immediate shutdown: the next start replays the log.
            stop_signal=signal.SIGINT,
            urgent_signal=signal.SIGQUIT,
        )
        self.child = child
        child.start()
        # At once: the next supervisor ends this process and no other.
        self._save(home)
        try:
            child.wait_until(lambda: home.is_ready(child.pid), START_SECONDS)
        except SuiteError:
            child.stop()
            raise
