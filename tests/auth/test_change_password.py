"""Changing a password, and asking what one is worth."""

import contextlib
from typing import Any
from uuid import UUID

import pytest
from finity.auth.v1 import auth_pb2, password_pb2, password_pb2_grpc
from google.rpc import error_details_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status

from chassis.callers import Caller, Kind
from chassis.errors import Refusal
from chassis.idempotency import Key
from chassis.postgres import Connection
from services.auth.domain.sessions import Means
from services.auth.domain.users import User
from services.auth.errors import CurrentPasswordWrong, PasswordNotSet, PasswordTooWeak
from services.auth.passwords import Passwords
from services.auth.service.passwords import PasswordService
from services.auth.service.sessions import Tokens
from services.auth.store import users as store_users
from tests.chassis.waiting import until
from tests.factories import (
    MEANS,
    AuthRoom,
    an_address,
    at_once,
    connect_owner,
    log_in,
    reason_of,
)
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, Person, bearer, info_of, refusal_of

NEW = "a brand new passphrase"


async def registered(auth: AuthRoom) -> tuple[Tokens, User]:
    """Registers and logs in somebody."""
    email = an_address()
    await auth.accounts.register(email=email, password=PASSWORD, key=None)
    return await log_in(auth, email)


def caller_of(tokens: Tokens) -> Caller:
    session = tokens.session
    return Caller(Kind.USER, user_id=session.user_id, session_id=session.id)


async def change(
    auth: AuthRoom,
    tokens: Tokens,
    *,
    current: str = PASSWORD,
    new: str = NEW,
    key: Key | None = None,
) -> int:
    return await PasswordService(auth.room).change(
        caller=caller_of(tokens), current=current, new=new, address="192.0.2.1", key=key
    )


async def login(auth: AuthRoom, email: str, password: str) -> Any:
    return await auth.sessions.login(email=email, password=password, means=MEANS, key=None)


async def test_the_new_password_is_the_one_that_fits(auth: AuthRoom) -> None:
    """After a change the old password is wrong and the new one right."""
    tokens, user = await registered(auth)
    await change(auth, tokens)
    assert await reason_of(login(auth, user.email, PASSWORD)) == "LOGIN_FAILED"
    await login(auth, user.email, NEW)


async def test_the_other_sessions_end(auth: AuthRoom, owner: Connection) -> None:
    """Every session but the caller's ends, with the reason; the caller's goes on by a refresh."""
    tokens, user = await registered(auth)
    others = [(await log_in(auth, user.email))[0] for _ in range(2)]
    stranger, _ = await registered(auth)
    assert await change(auth, tokens) == 2
    rows = await owner.fetch("SELECT id, end_reason, ended_by FROM sessions")
    ended = {row["id"]: (row["end_reason"], row["ended_by"]) for row in rows if row["end_reason"]}
    why = ("password_changed", f"user:{user.id}")
    assert ended == {other.session.id: why for other in others}
    for other in others:
        assert await reason_of(auth.sessions.refresh(other.refresh_token)) == "SESSION_ENDED"
        assert await reason_of(auth.verifier.verify(other.access_token)) == "TOKEN_REVOKED"
    assert await reason_of(auth.verifier.verify(tokens.access_token)) == "TOKEN_REVOKED"
    renewed = await auth.sessions.refresh(tokens.refresh_token)
    assert (await auth.verifier.verify(renewed.access_token)).session_id == tokens.session.id
    await auth.verifier.verify(stranger.access_token)
    (revoked,) = auth.announced
    assert set(revoked.sessions) == set(ended)
    assert list(revoked.versions) == [(user.id, 2)]


async def test_a_mail_says_so_in_the_same_transaction(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """The mail is queued with the hash's own transaction and holds no password."""
    tokens, user = await registered(auth)
    await change(auth, tokens)
    row = await owner.fetchrow(
        "SELECT o.payload->>'template' AS template, o.payload->>'to' AS address,"
        " o.payload->'values'->>'at' AS at, o.payload::text AS payload, d.consumer,"
        " u.xmin::text = o.xmin::text AS together"
        " FROM users u, auth_outbox o JOIN auth_deliveries d ON d.event_id = o.id"
        " WHERE o.topic = 'mail' AND o.payload->>'template' <> 'email_verification'"
    )
    assert (row["template"], row["address"]) == ("password_changed", user.email)
    assert (row["at"], row["consumer"], row["together"]) == (clock.now().isoformat(), "smtp", True)
    assert PASSWORD not in row["payload"]
    assert NEW not in row["payload"]


async def state_of(owner: Connection) -> list[Any]:
    """Returns what a refused change must leave as it is."""
    return [
        await owner.fetch("SELECT password_hash, token_version FROM users"),
        await owner.fetch("SELECT ended_at FROM sessions"),
        await owner.fetch("SELECT id FROM auth_outbox"),
        await owner.fetch("SELECT key FROM auth_idempotency_keys"),
    ]


async def test_a_wrong_current_password_changes_nothing(auth: AuthRoom, owner: Connection) -> None:
    """It is refused, whatever the key, and counted as a failed login is."""
    tokens, user = await registered(auth)
    before = await state_of(owner)
    for key in (None, Key("user", "ChangePassword", "k", b"f")):
        with pytest.raises(CurrentPasswordWrong):
            await change(auth, tokens, current="wrong horse", key=key)
    assert await state_of(owner) == before
    for _ in range(4):
        assert await reason_of(change(auth, tokens, current="wrong")) == "CURRENT_PASSWORD_WRONG"
    assert await reason_of(change(auth, tokens)) == "TOO_MANY_ATTEMPTS"
    means = Means(("pwd",), address="192.0.2.1")
    again = auth.sessions.login(email=user.email, password=PASSWORD, means=means, key=None)
    assert await reason_of(again) == "TOO_MANY_ATTEMPTS"


async def test_a_weak_new_password_changes_nothing(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What breaks a rule is refused before anything is hashed."""
    tokens, user = await registered(auth)
    before = await state_of(owner)

    async def never(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(Passwords, "verify", never)
    monkeypatch.setattr(Passwords, "hash", never)
    for new, why in (("Password1", "too_common"), (user.email, "like_email")):
        with pytest.raises(PasswordTooWeak) as refused:
            await change(auth, tokens, new=new)
        assert refused.value.metadata == {"why": why}
    with pytest.raises(PasswordTooWeak):
        await auth.accounts.register(email=an_address(), password="password", key=None)
    assert await state_of(owner) == before


async def test_a_weak_password_says_nothing_about_who_is_here(auth: AuthRoom) -> None:
    """An address that has an account and one that has none get the same refusal."""
    _, user = await registered(auth)
    refusals = []
    for email in (user.email, an_address()):
        with pytest.raises(PasswordTooWeak) as refused:
            await auth.accounts.register(email=email, password="iloveyou", key=None)
        refusals.append(refused.value)
    assert refusals[0].metadata == refusals[1].metadata
    assert refusals[0].violations == refusals[1].violations


async def test_an_account_without_a_password_has_none_to_change(
    auth: AuthRoom, owner: Connection
) -> None:
    """Who signs in elsewhere alone is PASSWORD_NOT_SET; who is gone is USER_NOT_FOUND."""
    tokens, _ = await registered(auth)
    await owner.execute("UPDATE users SET password_hash = NULL")
    with pytest.raises(PasswordNotSet):
        await change(auth, tokens)
    await owner.execute("DELETE FROM users")
    assert await reason_of(change(auth, tokens)) == "USER_NOT_FOUND"


async def test_a_change_with_the_key_again_is_the_first_answer(
    auth: AuthRoom, owner: Connection
) -> None:
    """Whoever lost the answer gets it, although the current password fits no more."""
    tokens, user = await registered(auth)
    await log_in(auth, user.email)
    key = Key("user", "ChangePassword", "k", b"same")
    assert await change(auth, tokens, key=key) == 1
    before = await state_of(owner)
    assert [await change(auth, tokens, key=key) for _ in range(8)] == [1] * 8
    assert await state_of(owner) == before
    other = Key("user", "ChangePassword", "k", b"other")
    assert await reason_of(change(auth, tokens, key=other)) == "IDEMPOTENCY_KEY_REUSED"
    await login(auth, user.email, NEW)


async def fifty_changes(auth: AuthRoom, tokens: Tokens) -> list[Any]:
    """50 callers change one password, each to another."""
    return await at_once(50, lambda index: change(auth, tokens, new=f"{NEW} {index}"))


async def test_of_fifty_changes_one_wins(auth: AuthRoom, owner: Connection) -> None:
    """All prove the same current password at once; one sets its own, one mail is sent."""
    for number in range(1, 4):
        tokens, user = await registered(auth)
        answers = await fifty_changes(auth, tokens)
        winners = [index for index, answer in enumerate(answers) if answer == 0]
        assert len(winners) == 1
        refusals = {answer.reason for answer in answers if isinstance(answer, Refusal)}
        assert refusals <= {"CONFLICT", "CURRENT_PASSWORD_WRONG", "TOO_MANY_ATTEMPTS"}
        await login(auth, user.email, f"{NEW} {winners[0]}")
        mails = await owner.fetchval(
            "SELECT count(*) FROM auth_outbox WHERE payload->>'template' = 'password_changed'"
        )
        assert mails == number


async def test_without_the_condition_several_would_win(
    auth: AuthRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: an UPDATE that does not ask for the verified hash lets many through."""

    async def unconditional(
        conn: Connection, user_id: UUID, *, verified: str, new_hash: str | None
    ) -> bool:
        await conn.execute("UPDATE users SET password_hash = $2 WHERE id = $1", user_id, new_hash)
        return True

    tokens, _ = await registered(auth)
    monkeypatch.setattr(store_users, "confirm_password", unconditional)
    assert sum(answer == 0 for answer in await fifty_changes(auth, tokens)) > 1


async def test_a_login_beside_a_change_gets_no_session(
    auth: AuthRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who verified the old password while it was changed is not let in afterwards."""
    tokens, user = await registered(auth)
    verify = Passwords.verify

    async def verify_then_change(passwords: Passwords, password: str, hashed: str | None) -> bool:
        fits = await verify(passwords, password, hashed)
        monkeypatch.setattr(Passwords, "verify", verify)
        await change(auth, tokens)
        return fits

    monkeypatch.setattr(Passwords, "verify", verify_then_change)
    assert await reason_of(login(auth, user.email, PASSWORD)) == "LOGIN_FAILED"


def stub_of(house: House) -> password_pb2_grpc.PasswordServiceStub:
    return password_pb2_grpc.PasswordServiceStub(house.auth_channel)


async def refused(call: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as refusal:
        await call
    return refusal.value


async def change_over_the_wire(house: House, person: Person, **fields: str) -> Any:
    request = password_pb2.ChangePasswordRequest(
        **{"current_password": PASSWORD, "new_password": NEW, **fields}
    )
    return await stub_of(house).ChangePassword(request, metadata=person.metadata)


async def test_a_change_over_the_wire(house: House) -> None:
    """The other session's token ends everywhere; the caller refreshes; the new password is good."""
    person = await house.person()
    login_request = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
    other = (await house.auth.Login(login_request)).tokens
    answer = await change_over_the_wire(house, person, idempotency_key="c-1")
    assert answer.ended_sessions == 1
    me = auth_pb2.GetUserRequest()

    async def revoked() -> bool:
        with contextlib.suppress(aio.AioRpcError):
            await house.auth.GetUser(me, metadata=bearer(other.access_token))
            return False
        return True

    await until(revoked)
    refresh = auth_pb2.RefreshSessionRequest(refresh_token=person.tokens.refresh_token)
    fresh = (await house.auth.RefreshSession(refresh)).tokens
    renewed = Person(person.user_id, person.email, fresh)
    await house.auth.GetUser(me, metadata=renewed.metadata)
    again = await change_over_the_wire(house, renewed, idempotency_key="c-1")
    assert again == answer
    assert refusal_of(await refused(house.auth.Login(login_request)))[1] == "LOGIN_FAILED"
    login_request.password = NEW
    await house.auth.Login(login_request)


async def test_changes_are_refused_by_reason(house: House) -> None:
    """A weak, a wrong, a missing and a malformed password are told apart."""
    person = await house.person()
    error = await refused(change_over_the_wire(house, person, new_password="PassWord"))
    assert refusal_of(error) == (StatusCode.INVALID_ARGUMENT, "PASSWORD_TOO_WEAK")
    assert dict(info_of(error).metadata) == {"why": "too_common"}
    assert violations_of(error) == [("new_password", "password.too_common")]
    error = await refused(change_over_the_wire(house, person, current_password="wrong horse"))
    assert refusal_of(error) == (StatusCode.PERMISSION_DENIED, "CURRENT_PASSWORD_WRONG")
    for bad in ("7 chars", "x" * 129, "eight\0chars"):
        error = await refused(change_over_the_wire(house, person, new_password=bad))
        assert refusal_of(error) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert bad not in (error.details() or "")
    async with connect_owner(house.database_url) as owner:
        await owner.execute("UPDATE users SET password_hash = NULL")
    error = await refused(change_over_the_wire(house, person))
    assert refusal_of(error) == (StatusCode.FAILED_PRECONDITION, "PASSWORD_NOT_SET")


def violations_of(error: aio.AioRpcError) -> list[tuple[str, str]]:
    """Returns field and rule of each violation a refusal names."""
    status = rpc_status.from_call(error)
    bad = error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        if detail.Unpack(bad):
            return [(violation.field, violation.reason) for violation in bad.field_violations]
    return []


async def test_a_registration_needs_a_good_password(house: House) -> None:
    """Register applies the rules and names the field."""
    email = an_address()
    for password, why in (("iloveyou", "too_common"), (email, "like_email")):
        request = auth_pb2.RegisterRequest(email=email, password=password)
        error = await refused(house.auth.Register(request))
        assert refusal_of(error) == (StatusCode.INVALID_ARGUMENT, "PASSWORD_TOO_WEAK")
        assert dict(info_of(error).metadata) == {"why": why}
        assert violations_of(error) == [("password", f"password.{why}")]


async def test_a_form_may_ask_what_a_password_is_worth(house: House) -> None:
    """Anybody gets score, rule and advice, as codes and as text."""

    async def check(password: str, email: str = "") -> Any:
        request = password_pb2.CheckPasswordStrengthRequest(password=password, email=email)
        return await stub_of(house).CheckPasswordStrength(request)

    said = await check(PASSWORD)
    assert (said.score, said.acceptable, said.weakness) == (4, True, 0)
    assert not said.HasField("warning")
    assert list(said.suggestions) == []

    said = await check("Password")
    assert (said.score, said.acceptable) == (0, False)
    assert said.weakness == password_pb2.PASSWORD_WEAKNESS_TOO_COMMON
    assert said.warning.code == password_pb2.PASSWORD_HINT_CODE_TOP_TEN
    assert said.warning.text == "This is a top-10 common password."
    assert password_pb2.PASSWORD_HINT_CODE_CAPITALS_HELP_LITTLE in {
        suggestion.code for suggestion in said.suggestions
    }
    said = await check("ada.lovelace", "Ada.Lovelace@example.com")
    assert said.weakness == password_pb2.PASSWORD_WEAKNESS_LIKE_EMAIL
    said = await check("x")
    assert said.weakness == password_pb2.PASSWORD_WEAKNESS_TOO_SHORT
    assert (await check("4@8({[<3691!|70$57+%2" * 6)).score == 4
    for bad in ("", "x" * 129, "eight\0chars"):
        error = await refused(check(bad))
        assert refusal_of(error) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
