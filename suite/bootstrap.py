"""
Makes .venv from a lock file: `python3 suite/bootstrap.py requirements-embedded.txt`.

Runs before anything is installed, on whatever python3 is: standard library only,
and nothing newer than Python 3.7 above the check of the version. Two at once wait
for each other; what is installed already costs nothing.
"""

import fcntl
import hashlib
import subprocess
import sys
import time
from pathlib import Path

OLDEST = (3, 11)
VENV = Path(".venv")
PYTHON = VENV / "bin" / "python"
# What of the checkout decides over the editable install.
PROJECT = Path("pyproject.toml")


def main() -> None:
    if sys.version_info < OLDEST:
        found = ".".join(str(part) for part in sys.version_info[:3])
        sys.exit(
            f"Finity needs Python 3.11 or newer and {sys.executable} is {found}; name another with"
            " `make PYTHON=/path/to/python3.11 ...`."
        )
    lock_file = Path(sys.argv[1])
    wanted = digest(lock_file, PROJECT)
    # Locked: this very file, which every checkout has and nothing else locks.
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = VENV / f"{lock_file.name}.installed"
        if stamp.is_file() and stamp.read_text() == wanted and works(PYTHON):
            return
        if not works(PYTHON):
            make_venv()
        remove_outdated_stamps(stamp)
        step(f"install {lock_file}", "--require-hashes", "--requirement", str(lock_file))
        step("install finity", "--no-deps", "--no-build-isolation", "--editable", ".")
        stamp.write_text(wanted)


def digest(*paths: Path) -> str:
    """Identifies what is installed; the folder, because an editable install points into it."""
    content = b"\n".join(path.read_bytes() for path in paths)
    return hashlib.sha256(content + str(Path.cwd()).encode()).hexdigest()


def remove_outdated_stamps(own: Path) -> None:
    """
    Removes the stamp of what is installed now, and those of other versions of the lock files.

    All install into the one .venv: when an older checkout comes back, its stamps
    must not claim what has been replaced. Lock files of one checkout agree.
    """
    for stamp in VENV.glob("*.installed"):
        lock_file = Path(stamp.stem)
        current = lock_file.is_file() and stamp.read_text() == digest(lock_file, PROJECT)
        if stamp == own or not current:
            stamp.unlink()


def works(python: Path) -> bool:
    """Whether the interpreter starts and has pip; an upgrade of the system breaks it."""
    try:
        ended = subprocess.run(  # noqa: S603 - our own command
            [str(python), "-c", "import pip"], capture_output=True, check=False
        )
    except OSError:
        return False
    return ended.returncode == 0


def make_venv() -> None:
    """Makes .venv anew; ends with one sentence where the system's Python cannot."""
    try:
        import ensurepip  # noqa: F401, PLC0415
        import venv  # noqa: PLC0415
    except ImportError:
        major, minor = sys.version_info[:2]
        sys.exit(
            f"{sys.executable} cannot make virtual environments; install python{major}.{minor}-venv"
            " (Debian, Ubuntu) or name another with `make PYTHON=/path/to/python3 ...`."
        )
    started = begin(f"make {VENV}")
    try:
        venv.create(VENV, clear=True, symlinks=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"failed\n{VENV} cannot be made with {sys.executable}: {error}")
    end(started)


def step(title: str, *arguments: str) -> None:
    """Runs `pip install`, quietly unless it fails."""
    started = begin(title)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-input"]
    ended = subprocess.run(  # noqa: S603 - our own command
        [*pip, "--disable-pip-version-check", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode:
        sys.exit(
            f"failed\n{ended.stdout.rstrip()}\nThe step `{title}` failed; pip's reason is above."
        )
    end(started)


def begin(title: str) -> float:
    print(f"  … {title:<60}", end=" ", flush=True)
    return time.monotonic()


def end(started: float) -> None:
    print(f"{time.monotonic() - started:5.1f} s", flush=True)


if __name__ == "__main__":
    main()
