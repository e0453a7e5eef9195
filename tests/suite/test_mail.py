"""The embedded mail server, and the mails it keeps as a person reads them."""

import smtplib
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

import pytest

from suite import mail, mailbox, ports, state
from suite.errors import SuiteError
from suite.mail import Catcher, EmbeddedMail
from tests.suite.terminal import finity

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def a_mail(subject: str = "Hello", text: str = "Good morning.\n") -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Finity <no-reply@finity.localhost>"
    message["To"] = "ada@example.com"
    message["Subject"] = subject
    message.set_content(text)
    message.add_alternative("<p>markup</p>", subtype="html")
    return message


def keep(
    directory: Path, message: EmailMessage, name: str = "20260131T093000.000001Z-abc123"
) -> None:
    Catcher(directory / "mail").store(name, message.as_bytes())


def test_it_takes_mail_and_keeps_it(directory: Path) -> None:
    server = EmbeddedMail(directory)
    assert server.environment() == {}
    server.start()
    try:
        told = server.environment()
        assert (told["FINITY_SMTP_HOST"], told["FINITY_SMTP_PORT"]) == (
            "127.0.0.1",
            str(server.port),
        )
        with smtplib.SMTP("127.0.0.1", server.port) as client:
            client.send_message(a_mail())
        port = server.port
        server.stop()
        server.start()
        assert server.port == port
    finally:
        server.stop()
    (kept,) = (directory / "mail").glob("*.eml")
    assert kept.stat().st_mode & 0o077 == 0
    listed = finity(directory, "mail")
    assert listed.returncode == 0, listed
    assert "ada@example.com" in listed.stdout
    assert "Hello" in listed.stdout
    printed = finity(directory, "mail", "last").stdout
    assert printed.endswith("To: ada@example.com\nSubject: Hello\n\nGood morning.\n")
    assert finity(directory, "mail", kept.stem.rpartition("-")[2]).stdout == printed


def test_nothing_yet_and_nothing_of_that_name(directory: Path) -> None:
    assert finity(directory, "mail").stdout == "no mail yet\n"
    assert ".finity/mail/" in finity(directory, "mail", "--help").stdout
    for name in ("last", "abc123"):
        ended = finity(directory, "mail", name)
        assert ended.returncode == 1
        assert "There is not" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_mail_cannot_play_with_the_terminal(directory: Path) -> None:
    evil = "\x1b[31mred\x1b[0m \x9b2J \u202egnp.exe [bold]b[/] \a"
    keep(directory, a_mail(subject="[red]x[/] \u202e\x9b", text=f"one\n\ttwo {evil}"))
    shown = finity(directory, "mail").stdout + finity(directory, "mail", "last").stdout
    assert not {"\x1b", "\x9b", "\u202e", "\a"} & set(shown)
    assert "[red]x[/]" in shown
    assert "one\n\ttwo [31mred[0m" in shown


def test_the_newest_is_last_and_the_oldest_go(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail, "KEPT", 8)
    for number in range(10):
        time = NOW + timedelta(seconds=number)
        keep(directory, a_mail(f"number {number}"), f"{time:%Y%m%dT%H%M%S.%fZ}-{number:06}")
    found = mailbox.mails(directory)
    assert [found[0].subject, found[-1].subject] == ["number 2", "number 9"]
    assert mailbox.find(directory, "last") == found[-1]
    assert mailbox.find(directory, "000007").subject == "number 7"
    with pytest.raises(SuiteError):
        mailbox.find(directory, "000001")


@pytest.mark.parametrize(
    ("seconds", "said"), [(-5, "0 s"), (59, "59 s"), (300, "5 min"), (7200, "2 h"), (172800, "2 d")]
)
def test_ages(seconds: int, said: str) -> None:
    kept = mailbox.Kept("a", NOW, "", "", "", "")
    assert mailbox.age(kept, NOW + timedelta(seconds=seconds)) == said


def test_a_taken_port_is_left_to_its_owner(directory: Path) -> None:
    first = EmbeddedMail(directory)
    with state.scratch() as other:
        first.start()
        state.write(other / "mail.json", {"port": first.port})
        second = EmbeddedMail(other)
        second.start()
        try:
            assert first.port != second.port
            assert not ports.is_free(second.port)
        finally:
            second.stop()
            first.stop()
