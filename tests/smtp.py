"""A real SMTP server that tests bring, and the mail it took."""

import asyncio
import contextlib
import email
import email.policy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller

from suite.ports import free_port

_LINK = re.compile(r"https?://\S+#token=([A-Za-z0-9_-]+)")
_CODE = re.compile(r"\b(\d{6})\b")


@dataclass(slots=True)
class Taken:
    """One mail as it came."""

    sender: str
    to: str
    message: EmailMessage

    @property
    def text(self) -> str:
        part = self.message.get_body(("plain",))
        assert part is not None
        return str(part.get_content())

    @property
    def html(self) -> str:
        part = self.message.get_body(("html",))
        assert part is not None
        return str(part.get_content())

    @property
    def secret(self) -> str:
        """The secret of its link."""
        found = _LINK.search(self.text)
        assert found, self.text
        return found[1]

    @property
    def code(self) -> str:
        found = _CODE.search(self.text)
        assert found, self.text
        return found[1]


@dataclass(slots=True)
class Mailbox:
    """Takes every mail, or answers the commands as `refusals` says."""

    port: int = 0
    taken: list[Taken] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)
    """Local part of a recipient, or "DATA" → the answer it gets."""
    tries: int = 0

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        self.tries += 1
        refused = self.refusals.get(address.partition("@")[0])
        if refused:
            return refused
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if "DATA" in self.refusals:
            return self.refusals["DATA"]
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.taken.append(Taken(envelope.mail_from, envelope.rcpt_tos[0], message))
        return "250 OK"

    def to(self, address: str) -> list[Taken]:
        """Returns what an address got, oldest first."""
        return [mail for mail in self.taken if mail.to == address]

    async def wait(self, address: str, subject: str, *, number: int = 1) -> Taken:
        """Returns the mail of that number with a subject to an address, once it is there."""
        async with asyncio.timeout(60):
            while True:
                found = [mail for mail in self.to(address) if mail.message["Subject"] == subject]
                if len(found) >= number:
                    return found[number - 1]
                await asyncio.sleep(0.02)


@contextlib.contextmanager
def open_mailbox(**options: Any) -> Iterator[Mailbox]:
    """Serves a mailbox on a free port in a thread of its own."""
    mailbox = Mailbox(port=free_port())
    controller = Controller(
        mailbox, hostname="127.0.0.1", port=mailbox.port, ready_timeout=60, **options
    )
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()
