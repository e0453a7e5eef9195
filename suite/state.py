"""
The folder .finity/: what the suite keeps between two runs on one machine.

lock               held while a suite runs here; holds its process id
credentials.json   development secrets, made once (0600)
run.json           processes, addresses and URLs of the current or last run (0600)
postgres.json      where the embedded PostgreSQL keeps its data, its port and password (0600)
valkey.json, valkey.conf, mail.json, envoy.yaml
mail/              what the suite sent to people (0700)
"""

import contextlib
import fcntl
import json
import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from suite.errors import SuiteError

# The checkout.
ROOT = Path(__file__).resolve().parent.parent

STATE_SETTING = "FINITY_STATE_DIR"
Record = dict[str, Any]


def default_directory() -> Path:
    """FINITY_STATE_DIR, or .finity in the checkout."""
    return Path(os.environ.get(STATE_SETTING) or ROOT / ".finity")


def prepare(directory: Path) -> Path:
    """Makes the folder; SuiteError if it belongs to somebody else."""
    try:
        # An unprivileged PostgreSQL must get through to its data; every secret in it is 0600.
        made = not directory.exists()
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if made:
            # A umask may have narrowed it. One that was there has the mode its owner chose.
            directory.chmod(0o755)
    except OSError as error:
        raise SuiteError(f"{directory} cannot be made: {error.strerror}.") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        owner = pwd.getpwuid(directory.stat().st_uid).pw_name
        raise SuiteError(
            f"{directory} belongs to {owner}; run as {owner}, or set {STATE_SETTING} to a folder of"
            " your own."
        )
    return directory


def read(path: Path) -> Record:
    """Returns a record, {} if there is none."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except PermissionError as error:
        raise SuiteError(
            f"{path} is not yours to read; run as its owner, or set {STATE_SETTING}."
        ) from error
    except (ValueError, TypeError) as error:
        raise SuiteError(f"{path} is damaged; restore it, or delete it and start again.") from error


def write(path: Path, record: Record) -> None:
    """Replaces a record in one step, readable by its owner alone."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    if os.geteuid() == 0:
        # Root in somebody's checkout must not lock its owner out.
        owner = path.parent.stat()
        os.fchown(handle, owner.st_uid, owner.st_gid)
    with os.fdopen(handle, "w") as file:
        json.dump(record, file, indent=2)
        file.flush()
        # Before the rename: a power cut must not leave an empty file under the name.
        os.fsync(file.fileno())
    Path(name).replace(path)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the folder for this process; SuiteError if another one has it."""
    prepare(directory)
    try:
        file = (directory / "lock").open("a+")
    except PermissionError as error:
        raise SuiteError(
            f"{directory} was made by another user; set {STATE_SETTING} to a folder of your own."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SuiteError(
                f"The suite already runs from this folder (process {holder(directory)}); stop it"
                f" with Ctrl-C or `kill`, or set {STATE_SETTING} to another folder."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_locked(directory: Path) -> bool:
    """Whether a suite runs from this folder now."""
    try:
        with (directory / "lock").open("r") as file:
            # A shared lock, so that two that only look do not see each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def holder(directory: Path) -> str:
    """Process id of the suite that runs, or ran last, from this folder; "" if unknown."""
    with contextlib.suppress(OSError):
        return (directory / "lock").read_text().strip()
    return ""


@contextlib.contextmanager
def scratch(prefix: str = "finity-") -> Iterator[Path]:
    """A state folder for a test or a benchmark, gone at the end."""
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        # As prepare() makes one; mkdtemp's is closed to an unprivileged PostgreSQL.
        Path(name).chmod(0o755)
        yield prepare(Path(name))
