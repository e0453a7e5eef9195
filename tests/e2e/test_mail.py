"""What a person does with mails: real rooms, a real SMTP server, and JSON through the gateway."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from finity.auth.v1 import auth_pb2, email_pb2, email_pb2_grpc
from grpc import StatusCode, aio

from tests.factories import an_address
from tests.fakes import FakeClock
from tests.gateway.harness import Answer, Gateway, running
from tests.running import PASSWORD, House, bearer, open_house, refusal_of
from tests.smtp import Mailbox, open_mailbox

NEW_PASSWORD = "another horse battery"
VERIFY = "Confirm your e-mail address"
RESET = "Set a new password"
SIGN_IN = "Sign in to Finity"
CHANGE = "Confirm your new e-mail address"
URL = "https://app.example.com"
ROUTES = [
    f"/v1/{name}"
    for name in (
        "email:requestVerification",
        "email:verify",
        "email:requestChange",
        "email:confirmChange",
        "password:requestReset",
        "password:reset",
        "sessions:requestSignIn",
        "sessions:signIn",
    )
]


@dataclass(frozen=True, slots=True)
class Story:
    """The rooms, the mailbox they write to, and the service of this file."""

    house: House
    mailbox: Mailbox
    email: email_pb2_grpc.EmailServiceStub


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with open_mailbox() as box:
        yield box


@pytest.fixture
async def story(
    database_url: str, redis_url: str, transport: str, clock: FakeClock, mailbox: Mailbox
) -> AsyncIterator[Story]:
    async with open_house(
        database_url,
        redis_url,
        transport,
        clock,
        smtp_host="127.0.0.1",
        smtp_port=mailbox.port,
        public_url=URL,
    ) as house:
        yield Story(house, mailbox, email_pb2_grpc.EmailServiceStub(house.auth_channel))


async def refusal(call: Any) -> tuple[StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return refusal_of(caught.value)


INVALID = (StatusCode.UNAUTHENTICATED, "MAIL_SECRET_INVALID")


async def user_of(house: House, tokens: auth_pb2.SessionTokens) -> auth_pb2.User:
    metadata = bearer(tokens.access_token)
    return (await house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=metadata)).user


async def test_register_and_verify(story: Story, clock: FakeClock) -> None:
    """The mail that registering sends verifies the address; a second one replaces it."""
    person = await story.house.person(verified=False)
    first = await story.mailbox.wait(person.email, VERIFY)
    assert f"{URL}/verify-email#token={first.secret}" in first.text
    clock.advance(seconds=60)
    request = email_pb2.RequestEmailVerificationRequest()
    asked = await story.email.RequestEmailVerification(request, metadata=person.metadata)
    assert asked.next_mail_time.ToSeconds() > clock.now().timestamp()
    second = await story.mailbox.wait(person.email, VERIFY, number=2)
    assert second.secret != first.secret
    verify = email_pb2.VerifyEmailRequest
    assert await refusal(story.email.VerifyEmail(verify(secret=first.secret))) == INVALID
    assert not (await user_of(story.house, person.tokens)).email_verified
    await story.email.VerifyEmail(verify(email=person.email, code=second.code))
    assert (await user_of(story.house, person.tokens)).email_verified
    asked = await story.email.RequestEmailVerification(request, metadata=person.metadata)
    assert not asked.HasField("next_mail_time")


async def test_reset_a_password(story: Story) -> None:
    """The link sets a password and ends the session; it does not log in, the password does."""
    person = await story.house.person(verified=False)
    for email in (person.email, an_address()):
        request = email_pb2.RequestPasswordResetRequest(email=email)
        answer = await story.email.RequestPasswordReset(request)
        assert answer.HasField("next_mail_time")
    mail = await story.mailbox.wait(person.email, RESET)
    reset = email_pb2.ResetPasswordRequest(secret=mail.secret, new_password=NEW_PASSWORD)
    assert await story.email.ResetPassword(reset) == email_pb2.ResetPasswordResponse()
    assert await refusal(story.email.ResetPassword(reset)) == INVALID
    refresh = auth_pb2.RefreshSessionRequest(refresh_token=person.tokens.refresh_token)
    assert (await refusal(story.house.auth.RefreshSession(refresh)))[1] == "SESSION_ENDED"
    get_user = story.house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=person.metadata)
    assert (await refusal(get_user))[1] == "TOKEN_REVOKED"
    login = auth_pb2.LoginRequest(email=person.email, password=NEW_PASSWORD)
    assert (await story.house.auth.Login(login)).user.email_verified
    await story.mailbox.wait(person.email, "Your password was changed")


@pytest.mark.parametrize("by", ["link", "code"])
async def test_sign_in_by_mail(story: Story, by: str) -> None:
    """The link, or the code with the address, opens a session once and verifies the address."""
    person = await story.house.person(verified=False)
    await story.email.RequestSignIn(email_pb2.RequestSignInRequest(email=person.email.upper()))
    mail = await story.mailbox.wait(person.email, SIGN_IN)
    if by == "link":
        request = email_pb2.SignInRequest(secret=mail.secret, device="phone")
    else:
        request = email_pb2.SignInRequest(email=person.email, code=mail.code, device="phone")
    answer = await story.email.SignIn(request)
    assert answer.user.email_verified
    assert (await user_of(story.house, answer.tokens)).user_id == person.user_id
    assert await refusal(story.email.SignIn(request)) == INVALID


async def test_change_of_address(story: Story) -> None:
    """The old address is told with the new one masked; the new one's link makes the change."""
    person, to = await story.house.person(), an_address()
    request = email_pb2.RequestEmailChangeRequest(new_email=to)
    await story.email.RequestEmailChange(request, metadata=person.metadata)
    again = story.email.RequestEmailChange(request, metadata=person.metadata)
    assert await refusal(again) == (StatusCode.RESOURCE_EXHAUSTED, "MAIL_TOO_SOON")
    told = await story.mailbox.wait(person.email, "Your e-mail address is about to change")
    assert to not in told.text
    assert f"{to[0]}…@example.com" in told.text
    mail = await story.mailbox.wait(to, CHANGE)
    confirm = email_pb2.ConfirmEmailChangeRequest(secret=mail.secret)
    assert (await story.email.ConfirmEmailChange(confirm)).user.email == to
    assert await refusal(story.email.ConfirmEmailChange(confirm)) == INVALID
    for address in (person.email, to):
        await story.mailbox.wait(address, "Your e-mail address was changed")
    # The session that asked goes on.
    assert (await user_of(story.house, person.tokens)).email == to


async def test_a_proof_is_a_secret_or_a_code(story: Story) -> None:
    """Both, neither and half of one are INVALID_REQUEST."""
    secret, email = "s" * 32, an_address()
    calls: list[tuple[Any, Any]] = [
        (email_pb2.SignInRequest, story.email.SignIn),
        (email_pb2.VerifyEmailRequest, story.email.VerifyEmail),
    ]
    for kind, call in calls:
        for fields in (
            {},
            {"email": email},
            {"code": "123456"},
            {"secret": secret, "email": email, "code": "123456"},
            {"secret": "short"},
            {"email": email, "code": "12345"},
        ):
            assert await refusal(call(kind(**fields))) == (
                StatusCode.INVALID_ARGUMENT,
                "INVALID_REQUEST",
            )


async def test_the_story_in_json(
    database_url: str, redis_url: str, clock: FakeClock, mailbox: Mailbox, tmp_path: Path
) -> None:
    """Through Envoy; GET and HEAD on every route answer 404 or 405 and use nothing up."""
    async with open_house(
        database_url, redis_url, "native", clock, smtp_host="127.0.0.1", smtp_port=mailbox.port
    ) as house:
        with running(tmp_path, auth_address=house.auth_address) as gateway:
            await in_json(Json(gateway), mailbox)


@dataclass(frozen=True, slots=True)
class Json:
    """Calls the gateway without holding up the rooms, which run in this very loop."""

    gateway: Gateway

    async def call(self, method: str, path: str, body: object = None, token: str = "") -> Answer:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await asyncio.to_thread(self.gateway.call, method, path, body, headers)

    async def post(self, path: str, token: str = "", **body: str) -> Any:
        answer = await self.call("POST", path, body, token)
        assert answer.status == 200, answer.body
        return answer.json


async def in_json(json: Json, mailbox: Mailbox) -> None:
    email, to = an_address(), an_address()
    await json.post("/v1/users", email=email, password=PASSWORD)
    secret = (await mailbox.wait(email, VERIFY)).secret
    await scan(json, secret)
    await json.post("/v1/email:verify", secret=secret)

    asked = await json.post("/v1/sessions:requestSignIn", email=email)
    assert asked["next_mail_time"]
    secret = (await mailbox.wait(email, SIGN_IN)).secret
    await scan(json, secret)
    signed_in = await json.post("/v1/sessions:signIn", secret=secret, device="browser")
    assert signed_in["user"]["email_verified"]
    token = signed_in["tokens"]["access_token"]
    assert await json.post("/v1/email:requestVerification", token) == {}

    await json.post("/v1/email:requestChange", token, new_email=to)
    secret = (await mailbox.wait(to, CHANGE)).secret
    await scan(json, secret)
    changed = await json.post("/v1/email:confirmChange", secret=secret)
    assert changed["user"]["email"] == to

    await json.post("/v1/password:requestReset", email=to)
    secret = (await mailbox.wait(to, RESET)).secret
    await scan(json, secret)
    await json.post("/v1/password:reset", secret=secret, new_password=NEW_PASSWORD)
    again = await json.call(
        "POST", "/v1/password:reset", {"secret": secret, "new_password": "x" * 8}
    )
    assert again.status == 401
    assert again.json["details"][0]["reason"] == "MAIL_SECRET_INVALID"
    await json.post("/v1/sessions", email=to, password=NEW_PASSWORD)


async def scan(json: Json, secret: str) -> None:
    """Does what a mail scanner does with links: GET and HEAD, the secret in the query or not."""
    for route in ROUTES:
        for method in ("GET", "HEAD"):
            for path in (route, f"{route}?secret={secret}"):
                assert (await json.call(method, path)).status in (404, 405), (method, path)
