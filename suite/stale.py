"""
Processes a killed supervisor left behind: found by pid and start time, then ended.

On Linux the kernel ends them too (see leash.py); elsewhere this is all there is.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from suite.state import Record

GRACE_SECONDS = 8.0
_START_TIME_FIELD = 19  # of /proc/<pid>/stat, counted behind the command's name
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_KILL_SECONDS = 2.0


def started_at(pid: int) -> str | None:
    """Returns a text that no later process with this pid has; None if there is no such process."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        if fields[0] in "ZX" and not _has_threads(pid):
            return None
        # The time counts from the boot, and the record outlives it.
        return f"{fields[_START_TIME_FIELD]}{_boot()}"
    listed = subprocess.run(  # noqa: S603 - a number
        ["ps", "-o", "lstart=", "-p", str(pid)],  # noqa: S607 - /bin on BSD and macOS
        capture_output=True,
        text=True,
        check=False,
    )
    return listed.stdout.strip() or None


def is_alive(process: Record) -> bool:
    """Whether the recorded process, and not another one with its pid, still runs."""
    started = process.get("started")
    return bool(started) and started_at(int(process["pid"])) == started


def end(processes: Sequence[Record]) -> list[str]:
    """Ends what is left of a run, waiting at most GRACE_SECONDS; returns the names ended."""
    left = [process for process in processes if is_alive(process)]
    names = [str(process["name"]) for process in left]
    for process in left:
        _signal(process, int(process["stop_signal"]))
    left = _outlasting(left, GRACE_SECONDS)
    for process in left:
        _signal(process, signal.SIGKILL)
    _outlasting(left, _KILL_SECONDS)
    return names


def _outlasting(processes: list[Record], seconds: float) -> list[Record]:
    """Returns those that are still there after so long; sooner if none is."""
    deadline = time.monotonic() + seconds
    while processes and time.monotonic() < deadline:
        time.sleep(0.05)
        processes = [process for process in processes if is_alive(process)]
    return processes


def _signal(process: Record, number: int) -> None:
    # PermissionError: it runs as another user, who alone can end it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(int(process["pid"]), number)


def _has_threads(pid: int) -> bool:
    """Whether threads of a dead process are still ending: until then its ports stay taken."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False


def _boot() -> str:
    """Returns what tells this boot from others; "" where the kernel does not say."""
    try:
        return f" {_BOOT.read_text().strip()}"
    except OSError:
        return ""
