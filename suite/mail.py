"""
EmbeddedMail: an SMTP server of this checkout that takes every mail and sends none on.

Each mail is a file .finity/mail/<time>-<id>.eml, exactly as it came; `finity mail`
reads them. `python -m suite.mail FOLDER PORT` is the server itself.
"""

import asyncio
import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suite import ports, state
from suite.errors import SuiteError
from suite.processes import Child
from suite.state import ROOT

FOLDER = "mail"
KEPT = 1000
START_SECONDS = 10.0
# The mail server of whoever has one; then the suite starts none.
HOST_SETTING, PORT_SETTING = "FINITY_SMTP_HOST", "FINITY_SMTP_PORT"
_LARGEST_BYTES = 10 * 1024 * 1024
_PORT_ATTEMPTS = 3


class EmbeddedMail:
    """One server, on a free port of the loopback."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir
        self.port = 0
        self.child: Child | None = None

    def environment(self) -> dict[str, str]:
        """What leads the auth service here; {} before the start."""
        if not self.child:
            return {}
        address = {HOST_SETTING: ports.LOOPBACK, PORT_SETTING: str(self.port)}
        return address | {"FINITY_SMTP_SECURITY": "none", "FINITY_SMTP_USERNAME": ""}

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        record = self._directory / "mail.json"
        kept = state.read(record)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self.port = ports.free_port(kept.get("port"))
            try:
                self._serve()
                break
            except SuiteError:
                # Somebody took the port in between; anything else fails again.
                if attempt == _PORT_ATTEMPTS or ports.is_free(self.port):
                    raise
        state.write(record, {"port": self.port})

    def stop(self, seconds: float = 5.0) -> None:
        """Stops the server; the mails stay."""
        if self.child:
            self.child.stop(seconds)

    def _serve(self) -> None:
        folder = self._directory / FOLDER
        child = Child(
            "mail",
            [sys.executable, "-m", "suite.mail", str(folder.resolve()), str(self.port)],
            environment=os.environ | {"PYTHONPATH": str(ROOT)},
            directory=ROOT,
        )
        child.start()
        try:
            child.wait_until(
                lambda: ports.is_listening(child.pid, self.port) and ports.answers(self.port),
                START_SECONDS,
            )
        except SuiteError:
            child.stop()
            raise
        self.child = child


class Catcher:
    """Stores what the server takes; aiosmtpd calls it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.store(f"{time}-{secrets.token_hex(3)}", envelope.content)
        return "250 Taken"

    def store(self, name: str, content: bytes) -> None:
        """Writes a mail in one step, for its owner alone, and forgets the oldest past 1,000."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        half = self._folder / f".{name}"
        half.touch(mode=0o600)
        half.write_bytes(content)
        if os.geteuid() == 0:
            # Root in somebody's checkout must not lock its owner out.
            owner = self._folder.parent.stat()
            for path in (half, self._folder):
                os.chown(path, owner.st_uid, owner.st_gid)
        half.rename(self._folder / f"{name}.eml")
        kept = sorted(path.name for path in self._folder.iterdir() if path.suffix == ".eml")
        for old in kept[:-KEPT]:
            (self._folder / old).unlink(missing_ok=True)


async def serve(folder: Path, port: int) -> None:
    """Takes mail until the process ends."""
    # Part of the embedded extra, which no other command needs.
    from aiosmtpd.smtp import SMTP  # noqa: PLC0415

    catcher = Catcher(folder)

    def protocol() -> SMTP:
        return SMTP(
            catcher, data_size_limit=_LARGEST_BYTES, hostname="localhost", enable_SMTPUTF8=True
        )

    server = await asyncio.get_running_loop().create_server(protocol, ports.LOOPBACK, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
