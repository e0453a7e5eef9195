"""Links and codes that are mailed, as use cases over a database of the test's own."""

from typing import Any
from uuid import UUID

import asyncpg
import pytest

from chassis.callers import Caller, Kind
from chassis.errors import Code
from chassis.idempotency import Key
from chassis.postgres import Connection
from services.auth.domain.emails import LIFETIMES, LONGEST_PAUSE, PAUSE, Proof, Purpose, mask
from services.auth.domain.sessions import Acr, digest
from services.auth.domain.users import User
from services.auth.errors import MailSecretInvalid, MailTooSoon
from services.auth.service.emails import EmailService
from services.auth.store import sessions as store_sessions
from tests.auth.mailing import (
    NEW_PASSWORD,
    by_code,
    change_mail,
    fresh,
    reset_mail,
    sent,
    sign_in_mail,
)
from tests.factories import MEANS, AuthRoom, an_address, at_once, log_in, reason_of
from tests.fakes import FakeClock
from tests.mailbox import templates
from tests.running import PASSWORD


async def test_registering_mails_a_verification(
    auth: AuthRoom, emails: EmailService, owner: Connection
) -> None:
    """The mail is in the account's transaction; its link verifies, and may be sent twice."""
    user = await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
    mail = await sent(owner, "email_verification", user.email)
    together = await owner.fetchval(
        "SELECT count(DISTINCT xmin::text) FROM (SELECT xmin FROM users UNION ALL"
        " SELECT xmin FROM email_verifications UNION ALL SELECT xmin FROM auth_outbox) AS rows"
    )
    assert together == 1
    for _ in range(2):
        await emails.verify(Proof(mail.secret), address=None)
        assert (await auth.accounts.get_user(user.id)).email_verified_at is not None
    assert await emails.request_verification(user.id) is None


async def test_a_code_verifies_too(auth: AuthRoom, emails: EmailService, owner: Connection) -> None:
    """The code of the mail with its address does what the link does, once."""
    user = await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
    mail = await sent(owner, "email_verification", user.email)
    assert await reason_of(emails.verify(by_code(user, mail.wrong_code), address=None)) == (
        "MAIL_SECRET_INVALID"
    )
    await emails.verify(by_code(user, mail.code), address=None)
    assert (await auth.accounts.get_user(user.id)).email_verified_at is not None
    again = emails.verify(by_code(user, mail.code), address=None)
    assert await reason_of(again) == "MAIL_SECRET_INVALID"


async def test_mails_of_a_kind_keep_their_pause(
    auth: AuthRoom, emails: EmailService, owner: Connection, clock: FakeClock
) -> None:
    """A minute passes between two, two before the third, never more than an hour; a day forgets."""
    user = await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
    pause = PAUSE
    for number in range(1, 10):
        assert len(await templates(owner, user.email)) == number
        next_at = await emails.request_verification(user.id)
        assert next_at == clock.now() + pause
        assert len(await templates(owner, user.email)) == number
        clock.advance(seconds=pause.total_seconds())
        pause = min(pause * 2, LONGEST_PAUSE)
        await emails.request_verification(user.id)
    clock.advance(days=2)
    assert await emails.request_verification(user.id) == clock.now() + PAUSE


async def test_a_newer_mail_supersedes_the_older(
    emails: EmailService, owner: Connection, clock: FakeClock, ada: User
) -> None:
    """Link and code of the older mail are dead, those of the newer one good."""
    old = await sign_in_mail(emails, owner, ada)
    clock.advance(seconds=60)
    new = await sign_in_mail(emails, owner, ada)
    assert new.row_id != old.row_id
    for proof in (Proof(old.secret), by_code(ada, old.code)):
        assert await reason_of(emails.sign_in(proof, MEANS, None)) == "MAIL_SECRET_INVALID"
    await emails.sign_in(Proof(new.secret), MEANS, None)


@pytest.mark.parametrize("purpose", [Purpose.RESET, Purpose.SIGN_IN])
async def test_a_secret_ends_with_its_lifetime(
    emails: EmailService, owner: Connection, clock: FakeClock, ada: User, purpose: Purpose
) -> None:
    """At its end a link is worth nothing."""
    make = reset_mail if purpose is Purpose.RESET else sign_in_mail
    mail = await make(emails, owner, ada)
    clock.advance(seconds=LIFETIMES[purpose].total_seconds())
    if purpose is Purpose.RESET:
        use: Any = emails.reset_password(secret=mail.secret, new_password=NEW_PASSWORD)
    else:
        use = emails.sign_in(Proof(mail.secret), MEANS, None)
    with pytest.raises(MailSecretInvalid) as refused:
        await use
    assert (refused.value.code, refused.value.reason) == (
        Code.UNAUTHENTICATED,
        "MAIL_SECRET_INVALID",
    )


async def test_nothing_secret_is_stored(
    auth: AuthRoom, emails: EmailService, owner: Connection, ada: User
) -> None:
    """Neither a secret nor a code is in any row of any table; a digest of the secret is."""
    mails = [
        await sent(owner, "email_verification", ada.email),
        await reset_mail(emails, owner, ada),
        await sign_in_mail(emails, owner, ada),
        await change_mail(emails, auth, owner, ada, an_address()),
    ]
    tables = await owner.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    rows = [
        row[0]
        for table in tables
        for row in await owner.fetch(f"SELECT t::text FROM {table['tablename']} AS t")  # noqa: S608
    ]
    for mail in mails:
        assert not [row for row in rows if mail.secret in row]
        assert not [row for row in rows if f'"{mail.code}"' in row or f",{mail.code}," in row]
        assert [row for row in rows if digest(mail.secret) in row]


async def test_a_reset_ends_all_that_was_open(
    auth: AuthRoom, emails: EmailService, owner: Connection, clock: FakeClock, ada: User
) -> None:
    """A new password, every session and older mail ended, the owner told, nobody logged in."""
    tokens, _ = await log_in(auth, ada.email)
    other = await sign_in_mail(emails, owner, ada)
    mail = await reset_mail(emails, owner, ada)
    clock.advance(seconds=1)
    await emails.reset_password(secret=mail.secret, new_password=NEW_PASSWORD)
    (revoked,) = auth.announced
    assert revoked.sessions == [tokens.session.id]
    assert [user_id for user_id, _ in revoked.versions] == [ada.id]
    reasons = await owner.fetch("SELECT end_reason FROM sessions")
    assert [row["end_reason"] for row in reasons] == ["password_reset"]
    assert await reason_of(auth.sessions.refresh(tokens.refresh_token)) == "SESSION_ENDED"
    assert await reason_of(log_in(auth, ada.email)) == "LOGIN_FAILED"
    assert await reason_of(emails.sign_in(Proof(other.secret), MEANS, None)) == (
        "MAIL_SECRET_INVALID"
    )
    await auth.sessions.login(email=ada.email, password=NEW_PASSWORD, means=MEANS, key=None)
    assert (await templates(owner, ada.email))[-1] == "password_changed"
    again = emails.reset_password(secret=mail.secret, new_password=PASSWORD)
    assert await reason_of(again) == "MAIL_SECRET_INVALID"


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that every statement from now on is added to."""
    statements: list[str] = []
    for name in ("execute", "fetch", "fetchrow", "fetchval"):
        real = getattr(asyncpg.Connection, name)

        async def spy(conn: Any, sql: str, *rest: Any, _real: Any = real, **options: Any) -> Any:
            statements.append(sql)
            return await _real(conn, sql, *rest, **options)

        monkeypatch.setattr(asyncpg.Connection, name, spy)
    return statements


@pytest.mark.parametrize("request_", ["request_reset", "request_sign_in"])
async def test_an_unknown_address_costs_the_same(
    auth: AuthRoom,
    emails: EmailService,
    owner: Connection,
    monkeypatch: pytest.MonkeyPatch,
    request_: str,
) -> None:
    """Known, unverified, banned and unknown: the same answer after as many statements."""
    ada, banned, unverified = [
        await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
        for _ in range(3)
    ]
    await owner.execute("UPDATE users SET email_verified_at = created_at WHERE id = $1", ada.id)
    await owner.execute(
        "UPDATE users SET banned_at = created_at, ban_reason = 'test' WHERE id = $1", banned.id
    )
    statements = counting(monkeypatch)
    answers, costs, guesses = [], [], []
    for email in (ada.email, unverified.email, banned.email, an_address()):
        before = len(statements)
        answers.append(await getattr(emails, request_)(email=email, address=None))
        costs.append(len(statements) - before)
        before = len(statements)
        guess = emails.sign_in(Proof(email=email, code="000000"), MEANS, None)
        reason = await reason_of(guess)
        guesses.append((reason, len(statements) - before))
    assert len(set(answers)) == 1
    assert len(set(costs)) == 1
    assert len(set(guesses)) == 1
    assert guesses[0][0] == "MAIL_SECRET_INVALID"
    monkeypatch.undo()
    kind = request_.removeprefix("request_").replace("reset", "password_reset")
    assert kind not in await templates(owner, banned.email)
    assert kind in await templates(owner, unverified.email)


async def test_a_banned_account_s_secrets_are_worth_nothing(
    auth: AuthRoom, emails: EmailService, owner: Connection, ada: User
) -> None:
    """What was mailed before the ban is refused as a wrong secret is."""
    sign_in, reset = (
        await sign_in_mail(emails, owner, ada),
        await reset_mail(emails, owner, ada),
    )
    await owner.execute("UPDATE users SET banned_at = created_at, ban_reason = 'test'")
    for use in (
        emails.sign_in(Proof(sign_in.secret), MEANS, None),
        emails.sign_in(by_code(ada, sign_in.code), MEANS, None),
        emails.reset_password(secret=reset.secret, new_password=NEW_PASSWORD),
    ):
        assert await reason_of(use) == "MAIL_SECRET_INVALID"


async def test_a_sign_in_with_the_key_again_is_the_same_session(
    emails: EmailService, owner: Connection, ada: User
) -> None:
    """A lost answer is asked for again; another key finds the secret used."""
    mail = await sign_in_mail(emails, owner, ada)
    key = Key("public", "SignIn", "k", b"same")
    answers = await at_once(20, lambda _: emails.sign_in(Proof(mail.secret), MEANS, key))
    assert len({tokens.refresh_token for tokens, _ in answers}) == 1
    other = Key("public", "SignIn", "other", b"same")
    assert await reason_of(emails.sign_in(Proof(mail.secret), MEANS, other)) == (
        "MAIL_SECRET_INVALID"
    )


async def test_other_codes_under_a_used_key_are_guesses(
    emails: EmailService, owner: Connection, ada: User
) -> None:
    """They are refused for the key, and count: what the first call sent is not found by trying."""
    mail = await sign_in_mail(emails, owner, ada)
    await emails.sign_in(by_code(ada, mail.code), MEANS, Key("public", "SignIn", "k", b"right"))
    other = Key("public", "SignIn", "k", b"another")
    reasons = [
        await reason_of(emails.sign_in(by_code(ada, "none"), MEANS, other)) for _ in "1234567"
    ]
    assert reasons == ["IDEMPOTENCY_KEY_REUSED"] * 6 + ["TOO_MANY_ATTEMPTS"]


async def test_who_registered_without_the_mailbox_loses_the_account(
    auth: AuthRoom, emails: EmailService, owner: Connection
) -> None:
    """The first sign-in by mail verifies the address and ends an earlier password and session."""
    user = await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
    squatter, _ = await log_in(auth, user.email)
    mail = await sign_in_mail(emails, owner, user)
    tokens, found = await emails.sign_in(Proof(mail.secret), MEANS, None)
    assert found.email_verified_at is not None
    assert await reason_of(auth.sessions.refresh(squatter.refresh_token)) == "SESSION_ENDED"
    assert await reason_of(log_in(auth, user.email)) == "LOGIN_FAILED"
    caller = await auth.verifier.verify(tokens.access_token)
    assert caller.session_id == tokens.session.id
    assert auth.announced[0].sessions == [squatter.session.id]


async def test_a_verified_account_keeps_its_password(
    auth: AuthRoom, emails: EmailService, owner: Connection, ada: User
) -> None:
    """A sign-in by mail is one session more; how it was opened is in it."""
    mail = await sign_in_mail(emails, owner, ada)
    means = MEANS.__class__(("otp",), device="Ada's phone")
    tokens, _ = await emails.sign_in(by_code(ada, mail.code), means, None)
    assert (tokens.session.amr, tokens.session.acr) == (("otp",), Acr.AAL1)
    await log_in(auth, ada.email)
    assert auth.announced == []


async def test_an_address_is_changed(
    auth: AuthRoom, emails: EmailService, owner: Connection, clock: FakeClock, ada: User
) -> None:
    """The session that asked goes on, the others end, both addresses are told."""
    other, _ = await log_in(auth, ada.email)
    old_mail = await reset_mail(emails, owner, ada)
    to = an_address()
    mail = await change_mail(emails, auth, owner, ada, to)
    told = await owner.fetchval(
        "SELECT payload->'values'->>'new_email' FROM auth_outbox"
        " WHERE payload->>'template' = 'email_change_requested'"
    )
    assert told == mask(to)
    assert to.partition("@")[0] not in told
    clock.advance(seconds=1)
    user = await emails.confirm_change(mail.secret)
    assert user == await auth.accounts.get_user(ada.id)
    assert (user.email, user.email_verified_at is not None) == (to, True)
    rows = await owner.fetch("SELECT id, end_reason FROM sessions ORDER BY id")
    assert [row["end_reason"] for row in rows if row["id"] == other.session.id] == ["email_changed"]
    assert [row["end_reason"] for row in rows if row["id"] != other.session.id] == [None]
    assert auth.announced[-1].sessions == [other.session.id]
    assert (await templates(owner, ada.email))[-1] == "email_changed"
    assert (await templates(owner, to))[-1] == "email_changed"
    old = emails.reset_password(secret=old_mail.secret, new_password=NEW_PASSWORD)
    assert await reason_of(old) == "MAIL_SECRET_INVALID"
    assert await reason_of(emails.confirm_change(mail.secret)) == "MAIL_SECRET_INVALID"
    await log_in(auth, to)


async def test_a_change_needs_a_fresh_proof_and_its_pause(
    auth: AuthRoom, emails: EmailService, owner: Connection, clock: FakeClock, ada: User
) -> None:
    """A stale login is refused; a second change waits; the key repeats the first answer."""
    caller = await fresh(auth, ada)
    key = Key("user", "RequestEmailChange", "k", b"same")
    first = await emails.request_change(caller, new_email=an_address(), key=key)
    assert await emails.request_change(caller, new_email=an_address(), key=key) == first
    with pytest.raises(MailTooSoon) as refused:
        await emails.request_change(caller, new_email=an_address(), key=None)
    assert (refused.value.code, refused.value.retry_after) == (
        Code.RESOURCE_EXHAUSTED,
        PAUSE.total_seconds(),
    )
    clock.advance(minutes=11)
    stale = emails.request_change(caller, new_email=an_address(), key=None)
    assert await reason_of(stale) == "STEP_UP_REQUIRED"
    nobody = Caller(Kind.USER, user_id=UUID(int=7), acr=Acr.AAL1, auth_time=clock.now())
    assert await reason_of(emails.request_change(nobody, new_email=an_address(), key=None)) == (
        "USER_NOT_FOUND"
    )
    assert await reason_of(emails.request_verification(UUID(int=7))) == "USER_NOT_FOUND"


async def test_one_client_does_not_mail_the_whole_world(emails: EmailService) -> None:
    """Mails asked for from one address, for whomever, are slowed down."""
    for _ in range(51):
        await emails.request_reset(email=an_address(), address="192.0.2.7")
    more = emails.request_sign_in(email=an_address(), address="192.0.2.7")
    assert await reason_of(more) == "TOO_MANY_ATTEMPTS"
    await emails.request_sign_in(email=an_address(), address="192.0.2.8")


async def test_a_change_goes_with_the_session_that_asked(
    auth: AuthRoom, emails: EmailService, owner: Connection, ada: User
) -> None:
    """A thief's request for another address ends with the thief's session; so does its link."""
    mail = await change_mail(emails, auth, owner, ada, an_address())
    async with auth.room.database.transaction() as conn:
        await store_sessions.end_sessions(
            conn, ada.id, reason="revoked_by_user", by="user", now=auth.room.clock.now()
        )
    assert await reason_of(emails.confirm_change(mail.secret)) == "MAIL_SECRET_INVALID"
    assert (await auth.accounts.get_user(ada.id)).email == ada.email


async def test_codes_and_passwords_do_not_hold_each_other_off(
    auth: AuthRoom, emails: EmailService, owner: Connection, clock: FakeClock, ada: User
) -> None:
    """Whoever mistyped one too often may still use the other."""
    mail = await sign_in_mail(emails, owner, ada)
    for _ in range(6):
        wrong = auth.sessions.login(email=ada.email, password="wrong", means=MEANS, key=None)
        assert await reason_of(wrong) == "LOGIN_FAILED"
    assert await reason_of(log_in(auth, ada.email)) == "TOO_MANY_ATTEMPTS"
    await emails.sign_in(by_code(ada, mail.code), MEANS, None)
    clock.advance(minutes=1)
    bob = await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
    await sign_in_mail(emails, owner, bob)
    code = emails.sign_in
    for _ in range(6):
        assert await reason_of(code(by_code(bob, "none"), MEANS, None)) == "MAIL_SECRET_INVALID"
    assert await reason_of(code(by_code(bob, "none"), MEANS, None)) == "TOO_MANY_ATTEMPTS"
    await log_in(auth, bob.email)


async def test_a_lost_answer_is_given_again(
    emails: EmailService, owner: Connection, ada: User
) -> None:
    """With its key a reset is answered as before, once done; without it the secret is used."""
    mail = await reset_mail(emails, owner, ada)
    key = Key("public:x", "ResetPassword", "k", b"same")
    for _ in range(2):
        await emails.reset_password(secret=mail.secret, new_password=NEW_PASSWORD, key=key)
    assert (await templates(owner, ada.email)).count("password_changed") == 1
    other = Key("public:x", "ResetPassword", "l", b"same")
    for wrong in (None, other):
        call = emails.reset_password(secret=mail.secret, new_password=NEW_PASSWORD, key=wrong)
        assert await reason_of(call) == "MAIL_SECRET_INVALID"


async def test_a_lost_answer_to_a_change_is_given_again(
    auth: AuthRoom, emails: EmailService, owner: Connection, ada: User
) -> None:
    """With its key a change of address is answered as before; without it the secret is used."""
    to = an_address()
    mail = await change_mail(emails, auth, owner, ada, to)
    key = Key("public:x", "ConfirmEmailChange", "k", b"same")
    first = await emails.confirm_change(mail.secret, key)
    assert await emails.confirm_change(mail.secret, key) == first
    assert first.email == to
    assert await reason_of(emails.confirm_change(mail.secret)) == "MAIL_SECRET_INVALID"
