"""MfaService through real channels, on both transports."""

from collections.abc import Awaitable, Mapping
from typing import Any

import jwt
import pyotp
import pytest
from finity.auth.v1 import auth_pb2, mfa_pb2, mfa_pb2_grpc
from grpc import StatusCode, aio

from tests.authenticator import Authenticator
from tests.factories import answers_with, eventually
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, Metadata, Person, bearer, info_of, refusal_of

STEP_UP = (StatusCode.UNAUTHENTICATED, "STEP_UP_REQUIRED")


async def refused(call: Awaitable[Any]) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


async def refusal(call: Awaitable[Any]) -> tuple[StatusCode, str]:
    return refusal_of(await refused(call))


def stub(house: House) -> mfa_pb2_grpc.MfaServiceStub:
    return mfa_pb2_grpc.MfaServiceStub(house.auth_channel)


async def enrol(house: House, person: Person, clock: FakeClock) -> tuple[pyotp.TOTP, list[str]]:
    """Gives a person an authenticator app; returns it and the recovery codes."""
    enrolled = await stub(house).EnrolTotp(mfa_pb2.EnrolTotpRequest(), metadata=person.metadata)
    totp = pyotp.TOTP(enrolled.secret)
    request = mfa_pb2.ConfirmTotpRequest(totp_code=totp.at(clock.now()))
    confirmed = await stub(house).ConfirmTotp(request, metadata=person.metadata)
    return totp, list(confirmed.recovery_codes)


async def held_back(house: House, person: Person) -> Mapping[str, str]:
    """Logs in by password; returns what MFA_REQUIRED says."""
    login = auth_pb2.LoginRequest(email=person.email, password=PASSWORD, device="laptop")
    error = await refused(house.auth.Login(login))
    assert refusal_of(error) == (StatusCode.UNAUTHENTICATED, "MFA_REQUIRED")
    return dict(info_of(error).metadata)


def claims(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


async def test_a_sign_in_in_two_steps(house: House, clock: FakeClock) -> None:
    """Password, then code: a session of both; a wrong code and a used challenge are refused."""
    person = await house.person()
    totp, codes = await enrol(house, person, clock)
    clock.advance(seconds=30)
    said = await held_back(house, person)
    assert said["methods"] == "totp,recovery_code"
    request = mfa_pb2.CompleteSignInRequest(challenge=said["challenge"], totp_code="000000")
    if totp.at(clock.now()) != "000000":
        assert await refusal(stub(house).CompleteSignIn(request)) == (
            StatusCode.UNAUTHENTICATED,
            "MFA_CODE_INVALID",
        )
    request.totp_code = totp.at(clock.now())
    done = await stub(house).CompleteSignIn(request)
    assert done.user.mfa_enabled
    said_by = claims(done.tokens.access_token)
    assert (said_by["amr"], said_by["acr"]) == (["pwd", "otp"], "aal2")
    request.recovery_code = codes[0]
    assert await refusal(stub(house).CompleteSignIn(request)) == (
        StatusCode.UNAUTHENTICATED,
        "MFA_CHALLENGE_INVALID",
    )
    refresh = auth_pb2.RefreshSessionRequest(refresh_token=done.tokens.refresh_token)
    refreshed = await house.auth.RefreshSession(refresh)
    assert claims(refreshed.tokens.access_token)["acr"] == "aal2"


async def test_what_concerns_factors_needs_a_fresh_proof(house: House, clock: FakeClock) -> None:
    """With two factors a session of one, and an old session of two, must step up first."""
    person = await house.person()
    totp, codes = await enrol(house, person, clock)
    device = Authenticator()
    calls = stub(house)

    async def all_need(metadata: Metadata) -> None:
        passkey_id = "01890a5d-ac96-774b-bcce-b302099a8057"
        for call, request in (
            (calls.EnrolTotp, mfa_pb2.EnrolTotpRequest()),
            (calls.ConfirmTotp, mfa_pb2.ConfirmTotpRequest(totp_code="123456")),
            (calls.DisableTotp, mfa_pb2.DisableTotpRequest()),
            (calls.RegenerateRecoveryCodes, mfa_pb2.RegenerateRecoveryCodesRequest()),
            (calls.StartPasskeyRegistration, mfa_pb2.StartPasskeyRegistrationRequest()),
            (
                calls.FinishPasskeyRegistration,
                mfa_pb2.FinishPasskeyRegistrationRequest(credential_json="{}", name="x"),
            ),
            (calls.DeletePasskey, mfa_pb2.DeletePasskeyRequest(passkey_id=passkey_id)),
        ):
            made: Any = call
            error = await refused(made(request, metadata=metadata))
            assert refusal_of(error) == STEP_UP, request
            assert dict(info_of(error).metadata) == {"acr_values": "aal2", "max_age": "600"}

    await all_need(person.metadata)
    challenge = (await held_back(house, person))["challenge"]
    complete = mfa_pb2.CompleteSignInRequest(challenge=challenge, recovery_code=codes[0])
    tokens = (await calls.CompleteSignIn(complete)).tokens
    start = mfa_pb2.StartPasskeyRegistrationRequest()
    started = await calls.StartPasskeyRegistration(start, metadata=bearer(tokens.access_token))
    finish = mfa_pb2.FinishPasskeyRegistrationRequest(
        credential_json=device.create(started.options_json), name="phone"
    )
    made = await calls.FinishPasskeyRegistration(finish, metadata=bearer(tokens.access_token))
    assert list(made.recovery_codes) == []
    clock.advance(minutes=11)
    await all_need(bearer(tokens.access_token))
    by_code = mfa_pb2.StepUpRequest(totp_code=totp.at(clock.now()))
    raised = await calls.StepUp(by_code, metadata=bearer(tokens.access_token))
    assert claims(raised.access_token)["sid"] == tokens.session_id
    assert claims(raised.access_token)["auth_time"] == int(clock.now().timestamp())
    delete = mfa_pb2.DeletePasskeyRequest(passkey_id=made.passkey_id)
    await calls.DeletePasskey(delete, metadata=bearer(raised.access_token))
    again = calls.DeletePasskey(delete, metadata=bearer(raised.access_token))
    assert await refusal(again) == (StatusCode.NOT_FOUND, "PASSKEY_NOT_FOUND")


async def test_a_passkey_signs_in_and_steps_up(house: House, clock: FakeClock) -> None:
    """No address, no password; the options of nobody in particular serve whoever answers."""
    person, device, calls = await house.person(), Authenticator(), stub(house)
    start = mfa_pb2.StartPasskeyRegistrationRequest()
    started = await calls.StartPasskeyRegistration(start, metadata=person.metadata)
    finish = mfa_pb2.FinishPasskeyRegistrationRequest(
        credential_json=device.create(started.options_json), name="phone", idempotency_key="f-1"
    )
    made = await calls.FinishPasskeyRegistration(finish, metadata=person.metadata)
    assert len(made.recovery_codes) == 10
    assert await calls.FinishPasskeyRegistration(finish, metadata=person.metadata) == made

    async def shown() -> str:
        asked = await calls.StartPasskeyAssertion(mfa_pb2.StartPasskeyAssertionRequest())
        return device.get(asked.options_json)

    request = mfa_pb2.SignInWithPasskeyRequest(credential_json=await shown(), device="phone")
    done = await calls.SignInWithPasskey(request)
    assert done.user.user_id == person.user_id
    assert claims(done.tokens.access_token)["acr"] == "aal2"
    assert await refusal(calls.SignInWithPasskey(request)) == (
        StatusCode.UNAUTHENTICATED,
        "PASSKEY_INVALID",
    )
    clock.advance(minutes=12)
    step_up = mfa_pb2.StepUpRequest(credential_json=await shown())
    metadata = bearer(done.tokens.access_token)
    raised = await calls.StepUp(step_up, metadata=metadata)
    assert claims(raised.access_token)["auth_time"] == int(clock.now().timestamp())


async def test_factors_are_listed_in_pages(house: House, clock: FakeClock) -> None:
    """A user sees its own, an administrator anybody's; the page token is that user's."""
    person, calls = await house.person(), stub(house)
    totp, codes = await enrol(house, person, clock)
    tokens = (
        await calls.CompleteSignIn(
            mfa_pb2.CompleteSignInRequest(
                challenge=(await held_back(house, person))["challenge"], recovery_code=codes[0]
            )
        )
    ).tokens
    mine = bearer(tokens.access_token)
    for name in ("phone", "key"):
        clock.advance(seconds=30)
        start = mfa_pb2.StartPasskeyRegistrationRequest()
        started = await calls.StartPasskeyRegistration(start, metadata=mine)
        finish = mfa_pb2.FinishPasskeyRegistrationRequest(
            credential_json=Authenticator().create(started.options_json), name=name
        )
        await calls.FinishPasskeyRegistration(finish, metadata=mine)
    request = mfa_pb2.ListFactorsRequest(page_size=2)
    first = await calls.ListFactors(request, metadata=mine)
    assert [(factor.kind, factor.name) for factor in first.factors] == [
        (mfa_pb2.FACTOR_KIND_TOTP, ""),
        (mfa_pb2.FACTOR_KIND_PASSKEY, "phone"),
    ]
    assert not first.factors[0].HasField("last_use_time")
    assert first.recovery_codes_left == 9
    admin = await house.person(role=auth_pb2.ROLE_ADMIN)
    request = mfa_pb2.ListFactorsRequest(user_id=person.user_id, page_token=first.next_page_token)
    rest = await calls.ListFactors(request, metadata=admin.metadata)
    assert [factor.name for factor in rest.factors] == ["key"]
    assert rest.next_page_token == ""
    request.user_id = admin.user_id
    foreign = calls.ListFactors(request, metadata=admin.metadata)
    assert await refusal(foreign) == (StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    assert totp.secret not in str(first)


async def test_an_administrator_resets_what_was_lost(house: House, clock: FakeClock) -> None:
    """Every token of the user is refused within a moment; the admin needs a fresh proof."""
    person, admin, calls = (
        await house.person(),
        await house.person(role=auth_pb2.ROLE_ADMIN),
        stub(house),
    )
    await enrol(house, person, clock)
    request = mfa_pb2.ResetMfaRequest(
        user_id=person.user_id, reason="lost phone", idempotency_key="r-1"
    )
    clock.advance(minutes=11)
    assert await refusal(calls.ResetMfa(request, metadata=admin.metadata)) == STEP_UP
    step_up = mfa_pb2.StepUpRequest(password=PASSWORD)
    fresh = bearer((await calls.StepUp(step_up, metadata=admin.metadata)).access_token)
    answer = await calls.ResetMfa(request, metadata=fresh)
    assert not answer.user.mfa_enabled
    assert await calls.ResetMfa(request, metadata=fresh) == answer
    get = auth_pb2.GetUserRequest()
    await eventually(
        lambda: answers_with(house.auth.GetUser(get, metadata=person.metadata), "TOKEN_REVOKED")
    )
    refresh = auth_pb2.RefreshSessionRequest(refresh_token=person.tokens.refresh_token)
    error = await refused(house.auth.RefreshSession(refresh))
    assert dict(info_of(error).metadata) == {"end_reason": "mfa_changed"}
    await house.auth.Login(auth_pb2.LoginRequest(email=person.email, password=PASSWORD))
