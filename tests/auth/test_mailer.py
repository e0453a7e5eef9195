"""The mailer: what it writes, and what it does with each answer of a real SMTP server."""

import asyncio
import ipaddress
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import jinja2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from finity.auth.v1 import email_pb2
from google.api import annotations_pb2

from chassis import outbox
from chassis.ids import uuid7
from chassis.outbox import Event, Relay, Undeliverable
from chassis.postgres import Database
from chassis.refusals import PeerUnavailable
from services.auth import mailer as module
from services.auth.config import Settings
from services.auth.domain.emails import say_time
from services.auth.domain.one_time import code_of, secret_of
from services.auth.mailer import CALLS, PAGES, TEMPLATES, Mailer, SmtpServer
from services.auth.service.mail import MAIL, SMTP, Mail, enqueue
from suite.ports import free_port
from tests.chassis.waiting import until
from tests.factories import an_address
from tests.fakes import FakeClock
from tests.smtp import Mailbox, open_mailbox

SENDER = "Finity <no-reply@mail.example>"
URL = "https://app.example.com"
KEY = bytes(32)
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.txt") if path.stem != "footer")
# What other parts of the room send with nothing but `at`.
PLAIN = {
    "password_changed",
    "account_deletion_requested",
    "account_deleted",
    "mfa_enabled",
    "mfa_disabled",
    "oauth_linked",
    "device_approved",
    "email_changed",
}
# What must be given to those that need more.
NEEDED = {
    "email_change_requested": {"new_email": "a…@example.com"},
    "sign_in_methods_changed": {"change": "A passkey was added."},
    "usage_threshold": {"percent": "80", "month": "2026-01", "used": "8", "available": "2"},
}


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with open_mailbox() as running:
        yield running


def mailer_to(port: int, **server: Any) -> Mailer:
    return Mailer(SmtpServer("127.0.0.1", port, **server), SENDER, URL, KEY)


def a_mail(template: str = "password_changed", to: str = "", **values: str) -> Event:
    one_time = str(uuid4()) if template in PAGES else ""
    payload = {
        "template": template,
        "to": to or an_address(),
        "values": values,
        "one_time": one_time,
    }
    return Event(uuid7(datetime(2026, 1, 31, 9, 30, tzinfo=UTC)), MAIL, payload)


def written(template: str, **values: str) -> tuple[Event, str, str]:
    """Returns an event with the text and HTML written for it."""
    event = a_mail(template, **values)
    message = mailer_to(1).write(event)
    parts = [message.get_body((kind,)) for kind in ("plain", "html")]
    text, html = [str(part.get_content()) if part else "" for part in parts]
    return event, text, html


@pytest.mark.parametrize("name", NAMES)
def test_every_template_is_a_pair_that_needs_no_time(name: str) -> None:
    """Each has a text and an HTML part with and without `at`, and one line of subject."""
    needed = NEEDED.get(name, {})
    at = "2026-01-31T09:30:00+00:00"
    for values in (needed, {**needed, "at": at}):
        event, text, html = written(name, **values)
        said = "31 January 2026, 09:30 UTC"
        assert (said in text, said in html) == ("at" in values, "at" in values)
        assert at not in text + html
        assert not any(mark in part for mark in ("{{", "{%") for part in (text, html))
        if name in PAGES:
            link = f"{URL}/{PAGES[name]}#token={secret_of(KEY, row_of(event))}"
            assert link in text
            assert f'href="{link}"' in html
        subject = mailer_to(1).write(event)["Subject"]
        assert 0 < len(subject) < 70


def row_of(event: Event) -> UUID:
    return UUID(event.payload["one_time"])


def test_the_names_others_use_exist() -> None:
    """Every mail of the room has its templates."""
    assert set(NAMES) == PLAIN | set(PAGES) | set(NEEDED)


@pytest.mark.parametrize("name", ["email_verification", "sign_in"])
def test_mails_with_a_code_say_it(name: str) -> None:
    """Both parts carry the row's code."""
    event, text, html = written(name)
    code = code_of(KEY, row_of(event))
    assert code in text
    assert code in html


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("2026-11-25T13:46:09.123456+00:00", "25 November 2026, 13:46 UTC"),
        ("2026-12-31T23:59:59+00:00", "31 December 2026, 23:59 UTC"),
        ("2027-01-01T00:30:00+02:00", "31 December 2026, 22:30 UTC"),
        ("2026-01-01T00:00:00+00:00", "1 January 2026, 00:00 UTC"),
    ],
)
def test_a_time_is_said_as_people_do(at: str, said: str) -> None:
    """By the minute, in words and in one zone."""
    assert say_time(at) == said


def test_a_mail_names_the_day_of_an_erasure() -> None:
    _, text, html = written("account_deletion_requested", erased_at="2026-02-14T09:30:00+00:00")
    assert "deleted on 14 February 2026, 09:30 UTC" in text
    assert "deleted on 14 February 2026, 09:30 UTC" in html


def routes() -> set[str]:
    """Returns every call of the contract as a mail names it."""
    service = email_pb2.DESCRIPTOR.services_by_name["EmailService"]
    posts = [
        (one.name, one.GetOptions().Extensions[annotations_pb2.http]) for one in service.methods
    ]
    return {f"EmailService.{name} (POST {http.post})" for name, http in posts}


@pytest.mark.parametrize("name", PAGES)
def test_where_no_page_runs_a_mail_names_the_call(name: str) -> None:
    """In both parts, beside the link, and a call that the contract has; where pages are, not."""
    event = a_mail(name)
    bare = Mailer(SmtpServer("127.0.0.1", 1), SENDER, URL, KEY, pages=False).write(event)
    for kind in ("plain", "html"):
        part, with_pages = bare.get_body((kind,)), mailer_to(1).write(event).get_body((kind,))
        assert part is not None
        assert with_pages is not None
        assert CALLS[name] in part.get_content()
        assert secret_of(KEY, row_of(event)) in part.get_content()
        assert "Development" not in with_pages.get_content()
    assert CALLS[name] in routes()


def test_nobody_says_where_the_pages_are_by_default() -> None:
    """Links lead to pages only if FINITY_PUBLIC_URL names a place, be it the default one."""
    assert not Settings().mailer()._pages
    assert Settings(public_url="http://localhost:3000").mailer()._pages


def test_values_are_escaped_and_required() -> None:
    """A value cannot become markup, a subject no second header, a missing value no mail."""
    evil = "<script>alert(1)</script>"
    _, text, html = written("email_change_requested", new_email=evil)
    assert evil in text
    assert evil not in html
    assert "&lt;script&gt;" in html
    with pytest.raises(jinja2.UndefinedError):
        written("email_change_requested")


async def test_a_mail_arrives_whole(mailbox: Mailbox) -> None:
    """Envelope, headers and both parts are as RFC 5322 and RFC 3834 have them."""
    event = a_mail(to="ada@example.com")
    await mailer_to(mailbox.port).deliver(event)
    (mail,) = mailbox.taken
    assert (mail.sender, mail.to) == ("no-reply@mail.example", "ada@example.com")
    headers = mail.message
    assert headers["From"] == SENDER
    assert headers["To"] == "ada@example.com"
    assert headers["Subject"] == "Your password was changed"
    assert headers["Message-ID"] == f"<{event.id}@mail.example>"
    assert headers["Date"] == "Sat, 31 Jan 2026 09:30:00 +0000"
    assert headers["Auto-Submitted"] == "auto-generated"
    assert "password" in mail.text
    assert mail.html.startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("where", "answer", "kind"),
    [
        ("ada", "550 no such user", Undeliverable),
        ("ada", "450 try later", PeerUnavailable),
        ("DATA", "554 refused", Undeliverable),
        ("DATA", "451 try later", PeerUnavailable),
    ],
)
async def test_a_server_s_refusal_is_understood(
    mailbox: Mailbox, where: str, answer: str, kind: type[Exception]
) -> None:
    """5yz about this mail is for good, 4yz is for now (RFC 5321 section 4.2.1)."""
    mailbox.refusals[where] = answer
    with pytest.raises(kind) as refused:
        await mailer_to(mailbox.port).deliver(a_mail(to="ada@example.com"))
    assert "ada" not in str(refused.value)
    assert mailbox.taken == []


async def test_what_refuses_everybody_is_tried_again(mailbox: Mailbox) -> None:
    """No server, wrong security and wrong credentials are not the end of a mail."""
    for mailer in (
        mailer_to(free_port()),
        mailer_to(mailbox.port, security="starttls"),
        mailer_to(mailbox.port, security="tls"),
        mailer_to(mailbox.port, username="somebody", password="wrong"),
    ):
        with pytest.raises(PeerUnavailable):
            await mailer.deliver(a_mail())
    assert mailbox.taken == []


async def test_a_silent_server_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and says nothing ends in a refusal; others in line wait as long."""
    monkeypatch.setattr(module, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    mailer = mailer_to(server.sockets[0].getsockname()[1])
    sends = [mailer.deliver(a_mail()) for _ in range(module.CONNECTIONS + 2)]
    answers = await asyncio.gather(*sends, return_exceptions=True)
    assert [type(answer) for answer in answers] == [PeerUnavailable] * len(sends)
    server.close()


def test_a_mail_ends_before_its_lease() -> None:
    """Waiting and sending together end before another relay may take the mail."""
    assert outbox.LEASE.total_seconds() > module.WAIT_SECONDS + module.SEND_SECONDS


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "a stranger's"])
async def test_starttls_checks_the_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    """Mail goes out encrypted to a certificate that is trusted, and to no other."""
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with open_mailbox(tls_context=context, require_starttls=True) as mailbox:
        mailer = mailer_to(mailbox.port, security="starttls")
        if trusted:
            await mailer.deliver(a_mail())
        else:
            with pytest.raises(PeerUnavailable):
                await mailer.deliver(a_mail())
        assert len(mailbox.taken) == trusted


def self_signed(folder: Path) -> Path:
    """Writes a key and a certificate that signs itself into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    path = folder / "server.pem"
    path.write_bytes(pem)
    return path


@pytest.fixture
def relay(auth_database: Database, clock: FakeClock, mailbox: Mailbox) -> Relay:
    return Relay("auth", auth_database, {SMTP: mailer_to(mailbox.port).deliver}, clock)


async def post(database: Database, clock: FakeClock, to: str) -> None:
    async with database.transaction() as conn:
        await enqueue(conn, Mail("password_changed", to, about=uuid4()), clock.now())


async def states(database: Database) -> dict[str, tuple[str, int, str]]:
    async with database.connection() as conn:
        rows = await conn.fetch(
            "SELECT payload->>'to' AS who, state, attempts, last_error"
            " FROM auth_deliveries JOIN auth_outbox ON id = event_id"
        )
    return {row["who"]: (row["state"], row["attempts"], row["last_error"]) for row in rows}


async def test_a_permanent_refusal_is_dead_at_once_and_blocks_nobody(
    auth_database: Database, clock: FakeClock, mailbox: Mailbox, relay: Relay
) -> None:
    """Of three mails the refused one is dead with its code, the busy one due, the last one sent."""
    mailbox.refusals |= {"gone": "550 no such user", "busy": "450 mailbox busy"}
    for name in ("gone", "busy", "good"):
        await post(auth_database, clock, f"{name}@example.com")
    assert await relay.deliver_due() == 3
    assert await states(auth_database) == {
        "gone@example.com": ("dead", 1, "SMTP_550"),
        "busy@example.com": ("due", 1, "PEER_UNAVAILABLE"),
        "good@example.com": ("done", 1, ""),
    }
    del mailbox.refusals["busy"]
    clock.advance(seconds=2)
    assert await relay.deliver_due() == 1
    assert [mail.to for mail in mailbox.taken] == ["good@example.com", "busy@example.com"]


async def test_a_slow_consumer_keeps_nobody_waiting(
    auth_database: Database, clock: FakeClock
) -> None:
    """While one consumer hangs, a running relay serves the other one."""
    hangs, taken = asyncio.Event(), []

    async def hang(_: Event) -> None:
        hangs.set()
        await asyncio.Event().wait()

    async def take(event: Event) -> None:
        taken.append(event.id)

    relay = Relay("auth", auth_database, {SMTP: hang, "usage": take}, clock)
    task = asyncio.create_task(relay.run())
    await post(auth_database, clock, "ada@example.com")
    relay.wake()
    await hangs.wait()
    async with auth_database.transaction() as conn:
        event_id = await outbox.enqueue(conn, "auth", "thing_made", {}, ["usage"], now=clock.now())
    relay.wake()
    await until(lambda: taken == [event_id])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
