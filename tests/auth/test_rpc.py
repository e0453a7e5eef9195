"""AuthService through real channels, on both transports."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import jwt
import pytest
from finity.auth.v1 import auth_pb2
from finity.usage.v1 import usage_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status

from tests.factories import an_address, answers_with, connect_owner, eventually, sooner_or_later
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, Person, bearer, info_of, open_house, refusal_of

# Less than a verifier's poll: what is refused by then was pushed.
PUSHED_SECONDS = 3.0


async def refused(call: Awaitable[Any]) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


async def refusal(call: Awaitable[Any]) -> tuple[StatusCode, str]:
    return refusal_of(await refused(call))


async def until_revoked(call: Callable[[], Awaitable[Any]]) -> None:
    """Repeats a call until it is refused because its token was revoked."""
    await eventually(lambda: answers_with(call(), "TOKEN_REVOKED"), seconds=PUSHED_SECONDS)


def refresh_request(person: Person) -> auth_pb2.RefreshSessionRequest:
    return auth_pb2.RefreshSessionRequest(refresh_token=person.tokens.refresh_token)


async def test_register_normalises_the_address(house: House) -> None:
    """Two spellings of one address are one account."""
    request = auth_pb2.RegisterRequest(email="Ada@Example.com", password=PASSWORD)
    user = (await house.auth.Register(request)).user
    assert user.email == "ada@example.com"
    assert user.role == auth_pb2.ROLE_FREE
    assert not user.HasField("last_login_time")
    request.email = "ADA@example.COM"
    assert await refusal(house.auth.Register(request)) == (
        StatusCode.ALREADY_EXISTS,
        "EMAIL_ALREADY_TAKEN",
    )


async def test_an_idempotency_key_repeats_the_answer(house: House) -> None:
    """Register, Login and SetRole repeat the first answer; another request is refused."""
    reused = (StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
    register = auth_pb2.RegisterRequest(
        email=an_address(), password=PASSWORD, idempotency_key="r-1"
    )
    user = (await house.auth.Register(register)).user
    assert (await house.auth.Register(register)).user == user
    register.password += "!"
    assert await refusal(house.auth.Register(register)) == reused

    login = auth_pb2.LoginRequest(email=user.email, password=PASSWORD, idempotency_key="l-1")
    session = (await house.auth.Login(login)).tokens
    again = (await house.auth.Login(login)).tokens
    assert (again.session_id, again.refresh_token) == (session.session_id, session.refresh_token)
    login.email = user.email.upper()
    assert await refusal(house.auth.Login(login)) == reused

    role = auth_pb2.SetRoleRequest(
        user_id=user.user_id, role=auth_pb2.ROLE_PRO, reason="paid", idempotency_key="s-1"
    )
    changed = await house.auth.SetRole(role, metadata=house.service)
    assert await house.auth.SetRole(role, metadata=house.service) == changed
    role.role = auth_pb2.ROLE_FREE
    assert await refusal(house.auth.SetRole(role, metadata=house.service)) == reused


async def test_a_wrong_password_and_an_unknown_address_get_one_answer(house: House) -> None:
    """The two refusals are the same bytes: nobody learns who has an account."""
    person = await house.person()
    answers = []
    for email, password in ((person.email, "wrong horse"), (an_address(), PASSWORD)):
        request = auth_pb2.LoginRequest(email=email, password=password)
        error = await refused(house.auth.Login(request))
        assert refusal_of(error) == (StatusCode.UNAUTHENTICATED, "LOGIN_FAILED")
        status = rpc_status.from_call(error)
        assert status is not None
        answers.append(status.SerializeToString(deterministic=True))
    assert answers[0] == answers[1]


async def test_a_registration_keeps_the_contract(house: House) -> None:
    """An address that is none and a password of a wrong length are INVALID_REQUEST."""
    good = "ada@example.com"
    for email, password in (
        ("", PASSWORD),
        ("ada", PASSWORD),
        (f" {good}", PASSWORD),
        (f"{'a' * 250}@b.de", PASSWORD),
        (good, "7 chars"),
        (good, "x" * 129),
    ):
        request = auth_pb2.RegisterRequest(email=email, password=password)
        assert await refusal(house.auth.Register(request)) == (
            StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        )


async def test_fifty_refreshes_of_one_token_have_one_successor(house: House) -> None:
    """Parallel use of a refresh token forks nothing and logs nobody out."""
    person = await house.person()
    request = refresh_request(person)
    answers = await asyncio.gather(*(house.auth.RefreshSession(request) for _ in range(50)))
    assert len({answer.tokens.refresh_token for answer in answers}) == 1
    assert {answer.tokens.session_id for answer in answers} == {person.tokens.session_id}
    await house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=person.metadata)


async def test_refresh_is_refused_by_reason(house: House, clock: FakeClock) -> None:
    """A forged, a replayed and an ended session's token are told apart."""
    person = await house.person()
    garbage = auth_pb2.RefreshSessionRequest(refresh_token="garbage")
    assert await refusal(house.auth.RefreshSession(garbage)) == (
        StatusCode.UNAUTHENTICATED,
        "REFRESH_TOKEN_INVALID",
    )
    await house.auth.RefreshSession(refresh_request(person))
    clock.advance(minutes=11)
    assert await refusal(house.auth.RefreshSession(refresh_request(person))) == (
        StatusCode.UNAUTHENTICATED,
        "REFRESH_TOKEN_REPLAYED",
    )
    error = await refused(house.auth.RefreshSession(refresh_request(person)))
    assert refusal_of(error) == (StatusCode.UNAUTHENTICATED, "SESSION_ENDED")
    assert info_of(error).domain == "auth.finity"
    assert dict(info_of(error).metadata) == {"end_reason": "refresh_token_replayed"}


async def test_a_logout_reaches_every_service(house: House) -> None:
    """After a logout both services refuse the token, and refresh says why the session ended."""
    person, other = await house.person(), await house.person()
    await house.usage.GetBalance(usage_pb2.GetBalanceRequest(), metadata=person.metadata)
    await house.auth.Logout(auth_pb2.LogoutRequest(), metadata=person.metadata)
    await until_revoked(
        lambda: house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=person.metadata)
    )
    await until_revoked(
        lambda: house.usage.GetBalance(usage_pb2.GetBalanceRequest(), metadata=person.metadata)
    )
    error = await refused(house.auth.RefreshSession(refresh_request(person)))
    assert dict(info_of(error).metadata) == {"end_reason": "logout"}
    await house.usage.GetBalance(usage_pb2.GetBalanceRequest(), metadata=other.metadata)


async def test_a_new_role_ends_the_old_token(house: House) -> None:
    """A change of role ends older access tokens everywhere; a refresh gives one with the role."""
    person = await house.person()
    await house.usage.GetBalance(usage_pb2.GetBalanceRequest(), metadata=person.metadata)
    await house.auth.SetRole(
        auth_pb2.SetRoleRequest(user_id=person.user_id, role=auth_pb2.ROLE_PRO, reason="paid"),
        metadata=house.service,
    )
    await until_revoked(
        lambda: house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=person.metadata)
    )
    await until_revoked(
        lambda: house.usage.GetBalance(usage_pb2.GetBalanceRequest(), metadata=person.metadata)
    )
    tokens = (await house.auth.RefreshSession(refresh_request(person))).tokens
    fresh = bearer(tokens.access_token)
    await house.usage.GetBalance(usage_pb2.GetBalanceRequest(), metadata=fresh)
    request = auth_pb2.ValidateTokenRequest(token=tokens.access_token)
    said = await house.auth.ValidateToken(request, metadata=house.service)
    assert (said.active, said.role) == (True, auth_pb2.ROLE_PRO)
    assert (said.user_id, said.session_id) == (person.user_id, tokens.session_id)
    request.token = person.tokens.access_token
    assert not (await house.auth.ValidateToken(request, metadata=house.service)).active


async def test_a_bad_token_says_nothing(house: House, clock: FakeClock) -> None:
    """A token that is expired, garbage or another kind validates to active=false and no more."""
    person = await house.person()
    clock.advance(minutes=15)
    for token in (person.tokens.access_token, person.tokens.refresh_token, "x", "a.b.c"):
        request = auth_pb2.ValidateTokenRequest(token=token)
        said = await house.auth.ValidateToken(request, metadata=house.service)
        assert said == auth_pb2.ValidateTokenResponse()
    call = house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=person.metadata)
    assert await refusal(call) == (StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


async def test_the_published_keys_verify_a_token(house: House, clock: FakeClock) -> None:
    """Anybody can verify an access token with the JSON Web Key Set and a standard library."""
    person = await house.person()
    published = await house.auth.GetSigningKeys(auth_pb2.GetSigningKeysRequest())
    keys = jwt.PyJWKSet.from_dict(
        {"keys": [{f.name: value for f, value in key.ListFields()} for key in published.keys]}
    )
    token = person.tokens.access_token
    claims = jwt.decode(
        token,
        keys[jwt.get_unverified_header(token)["kid"]],
        algorithms=["EdDSA"],
        audience="finity",
        issuer="https://finity.ai",
    )
    assert (claims["sub"], claims["sid"]) == (person.user_id, person.tokens.session_id)
    assert claims["exp"] == int(clock.now().timestamp()) + 900
    assert person.tokens.access_token_expire_time.ToSeconds() == claims["exp"]


async def test_the_last_administrator_stays(house: House) -> None:
    """LAST_ADMIN guards the only administrator, also against itself; USER_NOT_FOUND is nobody."""
    admin = await house.person(role=auth_pb2.ROLE_ADMIN)
    request = auth_pb2.SetRoleRequest(
        user_id=admin.user_id, role=auth_pb2.ROLE_FREE, reason="tired"
    )
    assert await refusal(house.auth.SetRole(request, metadata=admin.metadata)) == (
        StatusCode.FAILED_PRECONDITION,
        "LAST_ADMIN",
    )
    request.user_id = "01890a5d-ac96-774b-bcce-b302099a8057"
    nobody = (StatusCode.NOT_FOUND, "USER_NOT_FOUND")
    assert await refusal(house.auth.SetRole(request, metadata=admin.metadata)) == nobody
    get = auth_pb2.GetUserRequest(user_id=request.user_id)
    assert await refusal(house.auth.GetUser(get, metadata=admin.metadata)) == nobody


@pytest.mark.parametrize(("reason", "good"), [("' \\u0000 \N{PILE OF POO}", True), ("\0", False)])
async def test_a_reason_is_any_printable_text(house: House, reason: str, good: bool) -> None:
    """A reason may hold whatever can be shown; NUL, which jsonb cannot hold, is INVALID_REQUEST."""
    person = await house.person()
    call = house.auth.SetRole(
        auth_pb2.SetRoleRequest(user_id=person.user_id, role=auth_pb2.ROLE_PRO, reason=reason),
        metadata=house.service,
    )
    if good:
        assert (await call).user.role == auth_pb2.ROLE_PRO
    else:
        assert await refusal(call) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_users_are_listed_without_gap_or_repeat(house: House, clock: FakeClock) -> None:
    """Pages together are everybody, newest first, even while others register."""
    admin = await house.person(role=auth_pb2.ROLE_ADMIN)
    expected = [admin.user_id]
    for _ in range(6):
        clock.advance(seconds=1)
        expected.insert(0, (await house.person()).user_id)
    listed: list[str] = []
    request = auth_pb2.ListUsersRequest(page_size=3)
    while True:
        page = await house.auth.ListUsers(request, metadata=admin.metadata)
        assert len(page.users) <= 3
        listed += [user.user_id for user in page.users]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        clock.advance(seconds=1)
        await house.person()
    assert listed == expected

    first = await house.auth.ListUsers(
        auth_pb2.ListUsersRequest(page_size=1, role=auth_pb2.ROLE_FREE), metadata=admin.metadata
    )
    for token, role in (
        (first.next_page_token, auth_pb2.ROLE_PRO),
        (first.next_page_token, auth_pb2.ROLE_UNSPECIFIED),
        ("garbage", auth_pb2.ROLE_FREE),
        ("\N{SNOWMAN}", auth_pb2.ROLE_FREE),
    ):
        request = auth_pb2.ListUsersRequest(page_token=token, role=role)
        assert await refusal(house.auth.ListUsers(request, metadata=admin.metadata)) == (
            StatusCode.INVALID_ARGUMENT,
            "PAGE_TOKEN_INVALID",
        )


async def test_revocations_are_listed(house: House, clock: FakeClock) -> None:
    """Ended sessions and ended tokens are listed while a token of theirs could live."""
    gone, changed = await house.person(), await house.person(role=auth_pb2.ROLE_PRO)
    await house.auth.Logout(auth_pb2.LogoutRequest(), metadata=gone.metadata)

    async def listed(**request: Any) -> auth_pb2.ListRevocationsResponse:
        return await house.auth.ListRevocations(
            auth_pb2.ListRevocationsRequest(**request), metadata=house.service
        )

    everything = await listed()
    assert list(everything.session_ids) == [gone.tokens.session_id]
    assert [(u.user_id, u.min_token_version) for u in everything.users] == [(changed.user_id, 2)]
    now = Timestamp()
    now.FromDatetime(clock.now())
    later = await listed(since_time=now)
    assert (list(later.session_ids), list(later.users)) == ([], [])
    clock.advance(minutes=16)
    over = await listed()
    assert (list(over.session_ids), list(over.users)) == ([], [])


async def test_a_time_that_is_none_is_invalid(house: House) -> None:
    """A timestamp outside the years 1 to 9999 is INVALID_REQUEST."""
    for seconds in (10**15, -(10**15), 253402300800):
        request = auth_pb2.ListRevocationsRequest(since_time=Timestamp(seconds=seconds))
        assert await refusal(house.auth.ListRevocations(request, metadata=house.service)) == (
            StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        )


async def test_too_many_logins_are_refused_with_a_delay(
    database_url: str, redis_url: str, transport: str, clock: FakeClock
) -> None:
    """Passwords beyond the queue are HASHING_BUSY with RetryInfo, the others are answered."""
    strong = {"argon2_memory_kib": 7168, "argon2_time_cost": 5, "argon2_queue": 2}
    async with open_house(database_url, redis_url, transport, clock, **strong) as house:
        person = await house.person()
        request = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
        answers = await asyncio.gather(
            *(house.auth.Login(request) for _ in range(30)), return_exceptions=True
        )
        busy = [answer for answer in answers if isinstance(answer, aio.AioRpcError)]
        assert 0 < len(busy) < len(answers)
        for error in busy:
            assert refusal_of(error) == (StatusCode.RESOURCE_EXHAUSTED, "HASHING_BUSY")
            assert retry_delay(error) > 0


def retry_delay(error: aio.AioRpcError) -> float:
    """Returns the seconds a refusal asks to wait, 0 if it does not say."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.RetryInfo()
    for detail in status.details if status else ():
        with contextlib.suppress(ValueError):
            if detail.Unpack(info):
                return float(info.retry_delay.ToTimedelta().total_seconds())
    return 0.0


async def test_guessing_is_slowed_down(house: House) -> None:
    """After five wrong passwords a further one costs a wait, for the right one too."""
    other = await house.person()

    async def held_off() -> bool:
        person = await house.person()
        wrong = auth_pb2.LoginRequest(email=person.email, password="wrong password")
        for _ in range(6):
            assert (await refusal(house.auth.Login(wrong)))[1] == "LOGIN_FAILED"
        right = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
        (answer,) = await asyncio.gather(house.auth.Login(right), return_exceptions=True)
        if not isinstance(answer, aio.AioRpcError):
            return False
        assert refusal_of(answer) == (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_ATTEMPTS")
        assert 0 < retry_delay(answer) <= 1
        return True

    # The wait is a second, which a busy machine may sit out.
    assert await sooner_or_later(held_off, rounds=10)
    await house.auth.Login(auth_pb2.LoginRequest(email=other.email, password=PASSWORD))


async def test_a_session_knows_its_device_and_address(house: House) -> None:
    """The client's name for itself and the address it calls from are kept with the session."""
    person = await house.person()
    login = await house.auth.Login(
        auth_pb2.LoginRequest(email=person.email, password=PASSWORD, device="Ada's laptop")
    )
    async with connect_owner(house.database_url) as owner:
        row = await owner.fetchrow(
            "SELECT device, host(address) AS address, amr, acr FROM sessions WHERE id = $1",
            login.tokens.session_id,
        )
    assert dict(row) == {
        "device": "Ada's laptop",
        "address": "127.0.0.1",
        "amr": ["pwd"],
        "acr": "aal1",
    }
