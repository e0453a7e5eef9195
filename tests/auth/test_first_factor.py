"""What an account's first factor ends: whatever one factor alone had opened."""

from typing import Any

import pytest
from finity.auth.v1 import auth_pb2, mfa_pb2
from grpc import StatusCode

from chassis.errors import Refusal
from chassis.idempotency import Key
from chassis.postgres import Connection
from services.auth.domain.emails import Proof
from services.auth.service.admin import AdminService
from services.auth.service.emails import EmailService
from services.auth.store import sessions as store_sessions
from tests.auth.factors import Factors, Somebody
from tests.auth.mailing import reset_mail, sign_in_mail
from tests.auth.test_mfa_rpc import enrol, refused, stub
from tests.authenticator import Authenticator
from tests.factories import (
    MEANS,
    answers_with,
    at_once,
    connect_owner,
    eventually,
    log_in,
    reason_of,
)
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, bearer, info_of, refusal_of

KEY = Key("public", "Login", "k", b"same")


async def add(ada: Somebody, kind: str) -> None:
    """Gives somebody a factor."""
    if kind == "totp":
        await ada.enrol()
    else:
        await ada.register(Authenticator())


@pytest.mark.parametrize("kind", ["totp", "passkey"])
async def test_the_other_sessions_end(factors: Factors, owner: Connection, kind: str) -> None:
    """The one that confirmed the factor goes on; the others are over, and everybody is told."""
    ada, stranger = await factors.somebody(), await factors.somebody()
    others = [(await log_in(factors.auth, ada.user.email))[0] for _ in range(2)]
    factors.auth.announced.clear()
    await add(ada, kind)
    rows = await owner.fetch("SELECT id, end_reason, ended_by FROM sessions")
    ended = {row["id"]: (row["end_reason"], row["ended_by"]) for row in rows if row["end_reason"]}
    assert ended == {other.session.id: ("mfa_changed", ada.caller.key) for other in others}
    (revoked,) = factors.auth.announced
    assert (set(revoked.sessions), list(revoked.versions)) == (set(ended), [])
    for other in others:
        assert await reason_of(factors.auth.verifier.verify(other.access_token)) == "TOKEN_REVOKED"
        refresh = factors.auth.sessions.refresh(other.refresh_token)
        assert await reason_of(refresh) == "SESSION_ENDED"
    assert stranger.caller.session_id not in ended


async def test_a_further_factor_ends_nothing(factors: Factors, owner: Connection) -> None:
    """Whatever is open beside it was opened by two factors."""
    ada = await factors.somebody()
    await ada.enrol()
    await ada.sign_in()
    await ada.register(Authenticator())
    assert await owner.fetchval("SELECT count(*) FROM sessions WHERE ended_at IS NOT NULL") == 0


async def test_mails_of_before_are_worth_nothing(
    factors: Factors, emails: EmailService, owner: Connection
) -> None:
    """Whoever is put out may have asked for them."""
    ada = await factors.somebody()
    by_mail = await sign_in_mail(emails, owner, ada.user)
    reset = await reset_mail(emails, owner, ada.user)
    await ada.enrol()
    sign_in = emails.sign_in(Proof(by_mail.secret), MEANS, None)
    assert await reason_of(sign_in) == "MAIL_SECRET_INVALID"
    renewed = emails.reset_password(secret=reset.secret, new_password="another horse battery")
    assert await reason_of(renewed) == "MAIL_SECRET_INVALID"


async def living_beside(factors: Factors, owner: Connection) -> int:
    """Logs in while the first factor is confirmed; counts what one factor holds open then."""
    ada = await factors.somebody()
    ada.secret = (await factors.mfa.enrol_totp(ada.caller)).secret

    async def one(index: int) -> Any:
        if index == 10:
            return await factors.mfa.confirm_totp(ada.caller, ada.code(), None)
        return await log_in(factors.auth, ada.user.email)

    answers = await at_once(20, one)
    assert not isinstance(answers[10], Refusal)
    return int(
        await owner.fetchval(
            "SELECT count(*) FROM sessions"
            " WHERE user_id = $1 AND acr = 'aal1' AND ended_at IS NULL",
            ada.user.id,
        )
    )


async def test_no_login_at_that_moment_survives(factors: Factors, owner: Connection) -> None:
    """It is ended by the factor or held back by it, in every round."""
    for _ in range(10):
        assert await living_beside(factors, owner) == 0


async def test_if_it_ended_nothing_logins_would_survive(
    factors: Factors, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: with the second step switched on alone, sessions of one factor stay."""

    async def nothing(*_: object, **__: object) -> list[object]:
        return []

    monkeypatch.setattr(store_sessions, "end_sessions", nothing)
    ada = await factors.somebody()
    await log_in(factors.auth, ada.user.email)
    await ada.enrol()
    # The one that confirmed the factor is of two.
    living = "SELECT count(*) FROM sessions WHERE acr = 'aal1' AND ended_at IS NULL"
    assert await owner.fetchval(living) == 1


async def test_a_login_sent_again_is_no_way_around(factors: Factors, owner: Connection) -> None:
    """The key of a session that one factor opened gives no tokens once there are two."""
    ada = await factors.somebody()
    tokens, _ = await log_in(factors.auth, ada.user.email, key=KEY)
    assert (await log_in(factors.auth, ada.user.email, key=KEY))[0].session == tokens.session
    # As if the session had been overlooked when the factor came.
    await owner.execute("UPDATE users SET mfa_enabled_at = now()")
    with pytest.raises(Refusal) as refused:
        await log_in(factors.auth, ada.user.email, key=KEY)
    assert (refused.value.reason, refused.value.metadata) == (
        "SESSION_ENDED",
        {"end_reason": "mfa_changed"},
    )
    await owner.execute("UPDATE sessions SET acr = 'aal2'")
    await log_in(factors.auth, ada.user.email, key=KEY)


async def test_a_mailed_sign_in_sent_again_is_none_either(
    factors: Factors, emails: EmailService, owner: Connection
) -> None:
    ada = await factors.somebody()
    mail = await sign_in_mail(emails, owner, ada.user)
    await emails.sign_in(Proof(mail.secret), MEANS, KEY)
    await owner.execute("UPDATE users SET mfa_enabled_at = now()")
    again = emails.sign_in(Proof(mail.secret), MEANS, KEY)
    assert await reason_of(again) == "SESSION_ENDED"


async def test_an_impersonation_sent_again_is_the_same(factors: Factors, owner: Connection) -> None:
    """An administrator who acts as somebody with a factor never had to show it."""
    ada, boss = await factors.somebody(), await factors.boss()
    await ada.enrol()
    admin = AdminService(factors.auth.room, factors.auth.sessions)
    key = Key(boss.caller.key, "ImpersonateUser", "k", b"same")
    sessions = [
        (
            await admin.impersonate(
                user_id=ada.user.id, reason="x", address=None, caller=boss.caller, key=key
            )
        )[0].session.id
        for _ in range(2)
    ]
    assert sessions[0] == sessions[1]


async def test_the_first_factor_on_the_wire(house: House, clock: FakeClock) -> None:
    """The other session's tokens are refused everywhere, and its login sent again says why."""
    person = await house.person()
    login = auth_pb2.LoginRequest(email=person.email, password=PASSWORD, idempotency_key="l-1")
    other = (await house.auth.Login(login)).tokens
    totp, _ = await enrol(house, person, clock)
    me = auth_pb2.GetUserRequest()
    await eventually(
        lambda: answers_with(
            house.auth.GetUser(me, metadata=bearer(other.access_token)), "TOKEN_REVOKED"
        )
    )
    error = await refused(house.auth.Login(login))
    assert refusal_of(error) == (StatusCode.UNAUTHENTICATED, "SESSION_ENDED")
    assert dict(info_of(error).metadata) == {"end_reason": "mfa_changed"}
    clock.advance(seconds=30)
    proof = mfa_pb2.StepUpRequest(totp_code=totp.at(clock.now()))
    await stub(house).StepUp(proof, metadata=person.metadata)
    async with connect_owner(house.database_url) as owner:
        left = await owner.fetch("SELECT id::text FROM sessions WHERE ended_at IS NULL")
    assert [row["id"] for row in left] == [person.tokens.session_id]
