"""Child: one process of the suite, its output and its end."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from suite import stale
from suite.errors import SuiteError
from suite.state import Record

LEASH = Path(__file__).with_name("leash.py")
_KEPT_LINES = 200
_SHOWN_LINES = 12
_URGENT_SECONDS = 1.0

Output = Callable[[str, str], None]
"""Takes the name of a process and a line it wrote."""


class Child:
    """
    A process that ends with this one and whose output is read here.

    Start it from a thread that lives as long as it should: Linux ends it with that thread.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        account: tuple[int, int] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        urgent_signal: signal.Signals | None = None,
        output: Output | None = None,
    ) -> None:
        """
        `account` is the uid and gid to run as; `output` None keeps the lines silent.

        `urgent_signal` is sent when `stop_signal` took too long, a second before SIGKILL.
        """
        self.name = name
        self.stop_signal = stop_signal
        self.output = output
        self._urgent_signal = urgent_signal
        self._command = list(command)
        self._environment = environment
        self._directory = directory
        self._account = account
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._started: str | None = None

    def start(self) -> None:
        """Starts the process; it is not ready yet."""
        account = ":".join(map(str, self._account)) if self._account else "-"
        leash = [sys.executable, "-I", "-S", str(LEASH)]
        self._lines.clear()
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [*leash, str(os.getpid()), str(int(self.stop_signal)), account, *self._command],
            env=self._environment,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches the supervisor alone, which stops its children in order.
            start_new_session=True,
        )
        self._started = stale.started_at(self._process.pid)
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), name=f"{self.name} output", daemon=True
        )
        self._reader.start()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def record(self) -> Record:
        """What the next supervisor needs to find this process, see stale.py."""
        return {
            "name": self.name,
            "pid": self.pid,
            "started": self._started,
            "stop_signal": int(self.stop_signal),
        }

    def require_running(self) -> None:
        """Raises SuiteError with how the process ended and its last lines."""
        if not self.running:
            raise SuiteError(self.obituary())

    def obituary(self) -> str:
        """Returns one sentence about the end of the process, and its last lines below."""
        code = self.process.wait()
        if self._reader:
            self._reader.join(timeout=1.0)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = list(self._lines)[-_SHOWN_LINES:]
        if not lines:
            return f"{self.name} stopped with {how} and wrote nothing."
        return f"{self.name} stopped with {how}; it wrote:\n" + "\n".join(f"  {ln}" for ln in lines)

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Returns once `ready` says so; SuiteError if the process ends first or time is up."""
        deadline = time.monotonic() + seconds
        while True:
            self.require_running()
            if ready():
                return
            if time.monotonic() > deadline:
                tail = self._lines[-1] if self._lines else "nothing"
                raise SuiteError(
                    f"{self.name} was not ready after {seconds:.0f} s; it last wrote: {tail}"
                )
            time.sleep(0.02)

    def ask_to_stop(self) -> None:
        """Sends the stop signal, if there is still somebody to get it."""
        if self.running:
            self.process.send_signal(self.stop_signal)

    def stop(self, seconds: float = 5.0) -> None:
        """Stops the process: asked first, killed with all it started after `seconds`."""
        if self._process is None:
            return
        self.ask_to_stop()
        if not self._ended_within(seconds) and self._urgent_signal:
            self.process.send_signal(self._urgent_signal)
            self._ended_within(_URGENT_SECONDS)
        if self.running:
            self.kill()
        if self._reader:
            self._reader.join(timeout=1.0)

    def kill(self) -> None:
        """Ends the process and its group at once, as `kill -9` does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def _ended_within(self, seconds: float) -> bool:
        try:
            self.process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode(errors="replace").rstrip()
                self._lines.append(line)
                if self.output:
                    self.output(self.name, line)
