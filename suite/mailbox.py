"""The mails that the embedded server took: listed, found, made fit for a terminal."""

import email
import email.policy
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

from suite.errors import SuiteError
from suite.mail import FOLDER

LAST = "last"
_TIME = "%Y%m%dT%H%M%S.%fZ"
# Control and format characters move the cursor, hide text or turn it round.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


@dataclass(frozen=True, slots=True)
class Kept:
    """One mail; its texts are safe to print."""

    id: str
    time: datetime
    sender: str
    to: str
    subject: str
    text: str


def mails(directory: Path) -> list[Kept]:
    """Returns every mail, the newest last."""
    return [_read(path) for path in sorted((directory / FOLDER).glob("*.eml"))]


def find(directory: Path, name: str) -> Kept:
    """Returns the mail with an id, or the newest for "last"; SuiteError if there is none."""
    found = [mail for mail in mails(directory) if name in (mail.id, LAST)]
    if not found:
        what = "any mail" if name == LAST else f"a mail {safe(name)}"
        raise SuiteError(f"There is not {what}; `.venv/bin/finity mail` lists what there is.")
    return found[-1]


def safe(text: str, *, kept: str = "") -> str:
    """Returns a text without what a terminal would obey; characters in `kept` stay."""
    return "".join(c for c in text if c in kept or unicodedata.category(c) not in _UNSAFE)


def age(mail: Kept, now: datetime) -> str:
    """Returns how old a mail is, as people say it: "12 s", "5 min", "3 h", "2 d"."""
    seconds = max(int((now - mail.time).total_seconds()), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _read(path: Path) -> Kept:
    time, _, name = path.stem.rpartition("-")
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    return Kept(
        id=safe(name),
        time=datetime.strptime(time, _TIME).replace(tzinfo=UTC),
        sender=_header(message, "From"),
        to=_header(message, "To"),
        subject=_header(message, "Subject"),
        text=_text(message),
    )


def _header(message: EmailMessage, name: str) -> str:
    return safe(str(message.get(name, "")))


def _text(message: EmailMessage) -> str:
    part = message.get_body(("plain",))
    if part is None:
        return "(no text part)"
    try:
        content = str(part.get_content())
    except (LookupError, ValueError):
        return "(unreadable)"
    return safe(content, kept="\n\t").strip()
