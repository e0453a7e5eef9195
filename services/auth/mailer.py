"""
The mailer: writes the mails of the outbox and hands them to an SMTP server (RFC 5321).

A template is a pair of files in templates/: `<name>.txt`, whose first line is the
subject, and `<name>.html`. Values a template may be given, all optional unless said:

- every one: `at`, when it happened, ISO 8601 text that the mail says in words.
- email_verification, sign_in: need a row (`one_time`), whose link and code they carry.
- password_reset, email_change: need a row, whose link they carry.
- email_change_requested: `new_email`, required: the address that is to be, masked.
- sign_in_methods_changed: `change`, required: what was changed, in a sentence.
- usage_threshold: `percent`, `month`, `used` and `available`, all required.
- account_deletion_requested: `erased_at`, when it will be, likewise.
- password_changed, email_changed, device_approved, oauth_linked, mfa_enabled,
  mfa_disabled, account_deleted: no others.

A link carries its secret in the fragment, which browsers and scanners send to no
server. The Message-ID is the event's id: a mail that is sent twice because an answer
was lost is one mail to whoever reads it.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import aiosmtplib
import jinja2

from chassis.deliveries import Event
from chassis.ids import uuid7_time
from chassis.outbox import Undeliverable
from chassis.refusals import PeerUnavailable
from services.auth.domain.emails import say_time
from services.auth.domain.one_time import code_of, secret_of

TEMPLATES = Path(__file__).parent / "templates"
# The page of the product that takes the secret of a template's link and calls the API with it.
PAGES = {
    "email_verification": "verify-email",
    "email_change": "confirm-email",
    "password_reset": "reset-password",
    "sign_in": "sign-in",
}
# What takes that secret where there are no such pages, as in development.
CALLS = {
    "email_verification": "EmailService.VerifyEmail (POST /v1/email:verify)",
    "email_change": "EmailService.ConfirmEmailChange (POST /v1/email:confirmChange)",
    "password_reset": "EmailService.ResetPassword (POST /v1/password:reset)",
    "sign_in": "EmailService.SignIn (POST /v1/sessions:signIn)",
}
_TIMES = ("at", "erased_at")
# Together they must end before the outbox's lease does, or a mail would be sent twice.
WAIT_SECONDS = 8.0
SEND_SECONDS = 15.0
CONNECTIONS = 4
_PERMANENT = 500


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where mail is handed over."""

    host: str
    port: int
    username: str = ""
    password: str = ""
    security: Literal["none", "starttls", "tls"] = "none"


class Mailer:
    """Delivers the outbox's mails, a few at a time."""

    def __init__(
        self, server: SmtpServer, sender: str, public_url: str, key: bytes, *, pages: bool = True
    ) -> None:
        """
        `key` is derived for one_time.PURPOSE; links start with `public_url`.

        Without `pages` nothing is there: mails then say which call takes a link's secret.
        """
        self._server = server
        name, self._envelope = parseaddr(sender)
        self._from = Address(name, addr_spec=self._envelope)
        self._public_url = public_url.rstrip("/")
        self._key = key
        self._pages = pages
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=jinja2.select_autoescape(["html"]),
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    async def deliver(self, event: Event) -> None:
        """Sends one mail; Undeliverable if the server will never take it, else PeerUnavailable."""
        message = self.write(event)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._slots.acquire()
        except TimeoutError as error:
            raise PeerUnavailable from error
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._send(message, str(event.payload["to"]))
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise _verdict(error.recipients[0].code) from None
        except aiosmtplib.SMTPDataError as error:
            raise _verdict(error.code) from None
        except aiosmtplib.SMTPNotSupported:
            raise Undeliverable("SMTP_NOT_SUPPORTED") from None
        # What refuses everybody, as wrong credentials do, is not this mail's end.
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            raise PeerUnavailable from error
        finally:
            self._slots.release()

    def write(self, event: Event) -> EmailMessage:
        """Writes the mail of an event: the same bytes each time but for the MIME boundary."""
        payload = event.payload
        template, values = str(payload["template"]), self._values(payload)
        text = self._templates.get_template(f"{template}.txt").render(values)
        subject, _, body = text.partition("\n")
        message = EmailMessage()
        message["From"] = self._from
        message["To"] = str(payload["to"])
        message["Subject"] = " ".join(subject.split())
        message["Date"] = format_datetime(uuid7_time(event.id))
        message["Message-ID"] = f"<{event.id}@{self._from.domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(body.lstrip("\n"))
        html = self._templates.get_template(f"{template}.html").render(values)
        message.add_alternative(html, subtype="html")
        return message

    def _values(self, payload: Mapping[str, Any]) -> dict[str, str]:
        values = {
            name: say_time(value) if name in _TIMES else value
            for name, value in payload["values"].items()
        }
        if payload["one_time"]:
            row_id = UUID(payload["one_time"])
            values["code"] = code_of(self._key, row_id)
            template = str(payload["template"])
            page = PAGES.get(template, "")
            if not self._pages and template in CALLS:
                values["call"] = CALLS[template]
            values["link"] = f"{self._public_url}/{page}#token={secret_of(self._key, row_id)}"
        return values

    async def _send(self, message: EmailMessage, to: str) -> None:
        await aiosmtplib.send(
            message,
            sender=self._envelope,
            recipients=[to],
            hostname=self._server.host,
            port=self._server.port,
            username=self._server.username or None,
            password=self._server.password or None,
            use_tls=self._server.security == "tls",
            start_tls=self._server.security == "starttls",
            # This machine's own name is nobody's business.
            local_hostname=self._from.domain,
            timeout=SEND_SECONDS,
        )


def _verdict(code: int) -> Exception:
    """Returns what a refusal of this mail means (RFC 5321 section 4.2.1): 5yz is for good."""
    return Undeliverable(f"SMTP_{code}") if code >= _PERMANENT else PeerUnavailable()
