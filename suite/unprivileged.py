"""
Running PostgreSQL when we are root, which it refuses to be.

It runs as `postgres` or `nobody`. Where that user cannot reach the checkout or the
virtual environment, data and programs live in a folder of /var/tmp instead: no
user is made and no folder that is not ours is opened.
"""

import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from suite.errors import SuiteError

ACCOUNTS = ("postgres", "nobody")
# Survives a reboot, and every user can reach it.
_ELSEWHERE = Path("/var/tmp")  # noqa: S108


class Account(NamedTuple):
    """The user a server runs as."""

    uid: int
    gid: int


def account_for(home: Path) -> Account | None:
    """
    Returns the user to give up our privileges for; None if we have none to give up.

    A folder that an ordinary user's run made stays that user's.
    """
    if os.geteuid() != 0:
        return None
    if home.exists() and home.stat().st_uid:
        owner = home.stat()
        return Account(owner.st_uid, owner.st_gid)
    for name in ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise SuiteError(
        "PostgreSQL does not run as root and this machine has neither a postgres nor a nobody"
        " user; run as an ordinary user, or set DATABASE_URL to a server."
    )


def can_enter(directory: Path, who: Account) -> bool:
    """Whether the user gets into a folder, its parents included."""
    return _succeeds(["/bin/sh", "-c", 'cd -- "$0"', str(directory)], who)


def can_run(program: Path, who: Account) -> bool:
    """Whether the user can start a program that knows --version."""
    return _succeeds([str(program), "--version"], who)


def data_home(wanted: Path, who: Account | None) -> Path:
    """Makes and returns a folder of the user's own: the one wanted, or one in /var/tmp."""
    if who is None:
        wanted.mkdir(mode=0o700, exist_ok=True)
        return wanted
    home = wanted if can_enter(wanted.parent, who) else elsewhere(wanted)
    # Data stays where it once was, though the way to it may have been opened or closed since.
    home = next((place for place in places(wanted) if _has_data(place)), home)
    home.mkdir(mode=0o700, exist_ok=True)
    if home.is_symlink() or home.lstat().st_uid not in (0, who.uid):
        raise SuiteError(f"{home} belongs to another user; delete it and start again.")
    os.chown(home, *who)
    return home


def _has_data(home: Path) -> bool:
    return (home / "data").is_dir()


def places(wanted: Path) -> tuple[Path, Path]:
    """Everywhere that the data of `wanted`, and of no other folder, may be."""
    return wanted, elsewhere(wanted)


def elsewhere(wanted: Path) -> Path:
    """The folder of /var/tmp that stands for one that the user cannot reach."""
    digest = hashlib.sha256(str(wanted.resolve()).encode()).hexdigest()[:16]
    return _ELSEWHERE / f"finity-{digest}"


def reachable_tree(
    tree: Path, parts: Sequence[str], program: str, home: Path, who: Account | None
) -> Path:
    """Returns the tree, or a copy of its parts in `home` if the user cannot run `program` in it."""
    if who is None or can_run(tree / program, who):
        return tree
    # Another version of the programs is another copy.
    version = hashlib.sha256((tree / program).read_bytes()).hexdigest()[:12]
    copy = home / f"programs-{version}"
    if not copy.is_dir():
        _copy(tree, parts, copy, who)
    return copy


def _copy(tree: Path, parts: Sequence[str], copy: Path, who: Account) -> None:
    with tempfile.TemporaryDirectory(dir=copy.parent) as half:
        target = Path(half) / "tree"
        for part in parts:
            shutil.copytree(tree / part, target / part, symlinks=True)
        for folder, _, names in os.walk(target):
            for path in (Path(folder), *(Path(folder) / name for name in names)):
                os.chown(path, *who, follow_symlinks=False)
        target.rename(copy)


def _succeeds(command: list[str], who: Account) -> bool:
    try:
        ended = subprocess.run(  # noqa: S603 - our own command
            command,
            user=who.uid,
            group=who.gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=False,
            timeout=20,
        )
    except OSError:
        return False
    return ended.returncode == 0
