"""Mail to a person, by the outbox: sent if and only if the transaction commits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from chassis import outbox
from chassis.postgres import Connection
from services.auth.domain.emails import Change
from services.auth.domain.users import User
from services.auth.service.room import ROOM

MAIL = "mail"
SMTP = "smtp"


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail; what is secret in it is made from `one_time` when it is sent."""

    template: str
    """Name of the templates, without the ending."""
    to: str
    values: Mapping[str, str] = field(default_factory=dict)
    """What the template may say; never a secret, the outbox keeps it."""
    one_time: UUID | None = None
    """The row whose secret or code the mail carries; see domain.one_time."""
    about: UUID = field(kw_only=True)
    """Whose account it is about: an erasure finds the mail whatever address it went to."""


async def enqueue(conn: Connection, mail: Mail, now: datetime) -> None:
    """Writes the mail into the outbox; the caller wakes the relay after the commit."""
    payload = {
        "template": mail.template,
        "to": mail.to,
        "values": dict(mail.values),
        "one_time": str(mail.one_time) if mail.one_time else "",
        "about": str(mail.about),
    }
    await outbox.enqueue(conn, ROOM, MAIL, payload, [SMTP], now=now)


async def tell_of_change(conn: Connection, user: User, change: Change, now: datetime) -> None:
    """Tells the owner what changed in how one signs in (OWASP ASVS 5.0, 6.3.7)."""
    values = {"change": change.value, "at": now.isoformat()}
    await enqueue(conn, Mail("sign_in_methods_changed", user.email, values, about=user.id), now)
