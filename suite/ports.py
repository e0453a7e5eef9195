"""Which TCP ports are free on this machine."""

import contextlib
import fcntl
import functools
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from suite.errors import SuiteError

LOOPBACK = "127.0.0.1"
_LISTEN = "0A"  # a state of /proc/net/tcp
# Where systems take the ports of outgoing connections from: Linux above 32767, macOS and
# Windows above 49151. A server's port from there is lost to whoever connects out meanwhile.
_EPHEMERAL = 32_768
_LOWEST = 20_000
_TRIES = 200
# Who was given one may not listen there yet.
_given: set[int] = set()


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on the port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def answers(port: int, host: str = LOOPBACK) -> bool:
    """Whether somebody accepts connections on the port."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def is_listening(pid: int, port: int) -> bool:
    """
    Whether this very process, or one it started, listens on the port.

    Two suites that start at once may both find a port free; the one that lost must
    not take the other's answer for its own. Only Linux can tell; elsewhere True.
    """
    if sys.platform != "linux":
        return True
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    return any(_holds(each, sockets) for each in (pid, *_children(pid)))


def _holds(pid: int, sockets: set[str]) -> bool:
    try:
        return any(str(fd.readlink()) in sockets for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except OSError:
        return []


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == _LISTEN and columns[1].endswith(f":{port:04X}"):
                    yield columns[9]


def free_port(remembered: int | None = None) -> int:
    """Returns the remembered port while it is free, else any free one of the loopback."""
    if remembered and is_free(remembered) and (remembered in _given or _claim(remembered)):
        return remembered
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """
    Returns so many free ports, none of those that systems give to outgoing connections.

    None is returned twice, nor, while this process lives, to another of the user's with the same
    temporary folder.
    SuiteError if there are too few.
    """
    found: list[int] = []
    for _ in range(_TRIES * count):
        port = _LOWEST + secrets.randbelow(_EPHEMERAL - _LOWEST)
        if port not in _given and is_free(port) and _claim(port):
            found.append(port)
        if len(found) == count:
            return found
    raise SuiteError(f"No free ports were found between {_LOWEST} and {_EPHEMERAL}.")


def _claim(port: int) -> bool:
    """Takes the port among all that look for free ones here; False if another process has it."""
    claims = _claims()
    if claims is not None:
        try:
            fcntl.lockf(claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            pass  # A file system without locks.
    _given.add(port)
    return True


@functools.cache
def _claims() -> int | None:
    """The file of which each byte is a port: the system gives the lock back when we end."""
    try:
        path = Path(tempfile.gettempdir()) / f"finity-ports-{os.getuid()}"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return None  # Then two that start side by side may choose the same port, and one says so.


def require_free(port: int, host: str, setting: str) -> None:
    """Raises SuiteError, naming the setting, if something listens on the port already."""
    if not is_free(port, host):
        raise SuiteError(
            f"Port {port} of {host} is taken by another program (or the address is not this"
            f" machine's); set {setting} to a free port, e.g. `{setting}={free_port()} make run`."
        )
