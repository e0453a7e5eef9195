"""What a mailed link or code does at most once, raced; with controls that take the guard away."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from chassis.errors import Refusal
from chassis.postgres import Connection
from services.auth.domain import one_time
from services.auth.domain.emails import Proof, Purpose, Turn
from services.auth.domain.users import User
from services.auth.errors import MailSecretInvalid
from services.auth.service.emails import EmailService
from services.auth.store import emails as store
from services.auth.store import users
from tests.auth.mailing import (
    by_code,
    change_mail,
    reset_mail,
    sent,
    sign_in_mail,
)
from tests.factories import MEANS, AuthRoom, an_address, at_once, reason_of
from tests.fakes import FakeClock
from tests.mailbox import templates
from tests.running import PASSWORD

# Races and their controls alike: who comes at once is not kept apart by connecting.
pytestmark = pytest.mark.usefixtures("every_connection")


def count(answers: list[Any], kind: type) -> int:
    return sum(isinstance(answer, kind) for answer in answers)


async def test_fifty_resets_with_one_secret(
    auth: AuthRoom, emails: EmailService, owner: Connection, ada: User
) -> None:
    """One sets its password, 49 are refused, and the one it set is the one that logs in."""
    mail = await reset_mail(emails, owner, ada)
    answers = await at_once(
        50,
        lambda number: emails.reset_password(secret=mail.secret, new_password=f"horse {number:04}"),
    )
    assert count(answers, MailSecretInvalid) == 49
    winner = answers.index(None)
    await auth.sessions.login(email=ada.email, password=f"horse {winner:04}", means=MEANS, key=None)


@pytest.mark.parametrize("by", ["link", "code"])
async def test_fifty_sign_ins_with_one_secret(
    auth: AuthRoom, emails: EmailService, owner: Connection, by: str
) -> None:
    """One opens a session, by link and by code, in every round."""
    for number in range(1, 4 if by == "link" else 2):
        user = await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
        mail = await sign_in_mail(emails, owner, user)
        proof = Proof(mail.secret) if by == "link" else by_code(user, mail.code)
        answers = await at_once(50, lambda _, proof=proof: emails.sign_in(proof, MEANS, None))  # type: ignore[misc]
        assert sum(not isinstance(answer, Refusal) for answer in answers) == 1
        assert await owner.fetchval("SELECT count(*) FROM sessions") == number


async def test_look_before_use_would_open_fifty(
    emails: EmailService, owner: Connection, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the condition in the UPDATE the same race opens several."""
    mail = await sign_in_mail(emails, owner, ada)
    # The lock on the account would serialise them before the UPDATE does.
    monkeypatch.setattr(users, "lock_user", users.get_user)

    async def look_first(conn: Connection, _: Purpose, secret_id: UUID, now: Any) -> bool:
        used = await conn.fetchval("SELECT used_at FROM email_sign_ins WHERE id = $1", secret_id)
        await asyncio.sleep(0.05)
        await conn.execute("UPDATE email_sign_ins SET used_at = $2 WHERE id = $1", secret_id, now)
        return used is None

    monkeypatch.setattr(store, "use_secret", look_first)
    await at_once(50, lambda _: emails.sign_in(Proof(mail.secret), MEANS, None))
    assert await owner.fetchval("SELECT count(*) FROM sessions") > 1


async def test_five_wrong_codes_are_the_end_of_the_code(
    emails: EmailService, owner: Connection, ada: User
) -> None:
    """Of 50 wrong guesses at once five count; then the code is dead, and the link still good."""
    mail = await sign_in_mail(emails, owner, ada)
    wrong = by_code(ada, mail.wrong_code)
    answers = await at_once(50, lambda _: emails.sign_in(wrong, MEANS, None))
    assert count(answers, Refusal) == 50
    tries = await owner.fetchval("SELECT tries FROM email_requests WHERE purpose = 'sign_in'")
    assert tries == one_time.CODE_TRIES
    # Below the limits: the account's delay is not what refuses.
    async with emails._room.database.transaction() as conn:
        code, now = by_code(ada, mail.code), emails._room.clock.now()
        assert await emails._prove(conn, Purpose.SIGN_IN, code, now) is None
    _, user = await emails.sign_in(Proof(mail.secret), MEANS, None)
    assert user.id == ada.id


async def test_a_stranger_s_codes_do_not_spoil_a_verification(
    auth: AuthRoom, emails: EmailService, owner: Connection
) -> None:
    """Whoever knows an address may spend its code; whoever reads its mail verifies by the link."""
    user = await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
    mail = await sent(owner, "email_verification", user.email)
    for number in range(one_time.CODE_TRIES):
        guess = emails.verify(by_code(user, mail.wrong_code), address=f"192.0.2.{number}")
        assert await reason_of(guess) == "MAIL_SECRET_INVALID"
    right = emails.verify(by_code(user, mail.code), address="198.51.100.1")
    assert await reason_of(right) == "MAIL_SECRET_INVALID"
    await emails.verify(Proof(mail.secret), address="198.51.100.1")
    assert (await auth.accounts.get_user(user.id)).email_verified_at is not None


async def test_counting_after_looking_would_allow_more(
    emails: EmailService, owner: Connection, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a count that is read first lets more than five guesses through."""
    mail = await sign_in_mail(emails, owner, ada)
    await owner.execute("ALTER TABLE email_requests DROP CONSTRAINT email_requests_tries_are_few")
    allowed = []

    async def look_first(conn: Connection, who: str, purpose: Purpose) -> int | None:
        tries = await conn.fetchval("SELECT tries FROM email_requests WHERE purpose = $1", purpose)
        await asyncio.sleep(0.05)
        if tries >= one_time.CODE_TRIES:
            return None
        allowed.append(tries)
        await conn.execute("UPDATE email_requests SET tries = tries + 1 WHERE who = $1", who)
        return int(tries) + 1

    monkeypatch.setattr(store, "count_try", look_first)
    wrong = by_code(ada, mail.wrong_code)
    await at_once(50, lambda _: emails.sign_in(wrong, MEANS, None))
    assert len(allowed) > one_time.CODE_TRIES


async def test_fifty_requests_are_one_mail(
    emails: EmailService, owner: Connection, ada: User
) -> None:
    """Of 50 who ask at once for the same address one is mailed to."""
    before = len(await templates(owner, ada.email))
    await at_once(50, lambda _: emails.request_reset(email=ada.email, address=None))
    assert len(await templates(owner, ada.email)) == before + 1


async def test_look_before_mailing_would_send_fifty(
    emails: EmailService, owner: Connection, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a pause that is read first lets the same race send several mails."""
    before = len(await templates(owner, ada.email))
    take = store.take_turn

    async def look_first(conn: Connection, who: str, purpose: Purpose, now: Any) -> Turn:
        seen = await conn.fetchval("SELECT true FROM email_requests WHERE who = $1", who)
        await asyncio.sleep(0.05)
        turn = await take(conn, who, purpose, now)
        return Turn(seen is None, turn.next_at)

    monkeypatch.setattr(store, "take_turn", look_first)
    await owner.execute("DELETE FROM email_requests")
    await at_once(50, lambda _: emails.request_reset(email=ada.email, address=None))
    assert len(await templates(owner, ada.email)) > before + 1


async def test_two_who_want_one_address(
    auth: AuthRoom, emails: EmailService, owner: Connection, clock: FakeClock
) -> None:
    """Whoever confirms first has it; the other is refused and keeps what it had."""
    to = an_address()
    mails = []
    for _ in range(10):
        user = await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
        mails.append(await change_mail(emails, auth, owner, user, to))
        clock.advance(seconds=1)
    answers = await at_once(10, lambda number: emails.confirm_change(mails[number].secret))
    reasons = [answer.reason for answer in answers if isinstance(answer, Refusal)]
    assert reasons == ["EMAIL_ALREADY_TAKEN"] * 9
