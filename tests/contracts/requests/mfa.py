"""Requests of MfaService; those that need a factor put it into the caller's account."""

from typing import Any
from uuid import UUID

import pyotp
import pytest
from finity.auth.v1 import auth_pb2, mfa_pb2, mfa_pb2_grpc
from google.protobuf.message import Message
from grpc import aio

from services.auth.store import mfa as store
from tests.authenticator import Authenticator
from tests.contracts.requests.given import Given
from tests.factories import connect_owner
from tests.running import PASSWORD, House, Metadata, Person, info_of


def _caller(given: Given) -> Person:
    return given.caller or given.somebody


def _metadata(given: Given, person: Person) -> Metadata:
    """Credentials of the session that will make the call: a first factor ends all others."""
    return given.metadata if person is given.caller else person.metadata


def _stub(given: Given) -> mfa_pb2_grpc.MfaServiceStub:
    return mfa_pb2_grpc.MfaServiceStub(given.house.auth_channel)


async def without_factors(house: House, person: Person) -> None:
    """Takes every factor away: a method may be called again by the same person."""
    async with connect_owner(house.database_url) as conn:
        await store.delete_factors(conn, UUID(person.user_id))
    await _one_factor_serves(house, person)


async def _one_factor_serves(house: House, person: Person) -> None:
    """Lets sessions of one factor pass: nobody here signs in anew."""
    async with connect_owner(house.database_url) as conn:
        await conn.execute("UPDATE users SET mfa_enabled_at = NULL WHERE id = $1", person.user_id)


async def _enrolled(given: Given, person: Person) -> pyotp.TOTP:
    await without_factors(given.house, person)
    request = mfa_pb2.EnrolTotpRequest()
    answer = await _stub(given).EnrolTotp(request, metadata=_metadata(given, person))
    return pyotp.TOTP(answer.secret)


async def _confirmed(given: Given, person: Person) -> list[str]:
    totp = await _enrolled(given, person)
    request = mfa_pb2.ConfirmTotpRequest(totp_code=totp.at(given.clock.now()))
    answer = await _stub(given).ConfirmTotp(request, metadata=_metadata(given, person))
    return list(answer.recovery_codes)


async def _made(given: Given, person: Person, device: Authenticator) -> Any:
    await without_factors(given.house, person)
    start = mfa_pb2.StartPasskeyRegistrationRequest()
    started = await _stub(given).StartPasskeyRegistration(start, metadata=_metadata(given, person))
    made = device.create(started.options_json)
    return mfa_pb2.FinishPasskeyRegistrationRequest(credential_json=made, name="phone")


async def _confirm(given: Given) -> Message:
    totp = await _enrolled(given, _caller(given))
    return mfa_pb2.ConfirmTotpRequest(totp_code=totp.at(given.clock.now()))


async def _enrol(given: Given) -> Message:
    await without_factors(given.house, _caller(given))
    return mfa_pb2.EnrolTotpRequest()


async def _disable(given: Given) -> Message:
    await _confirmed(given, _caller(given))
    await _one_factor_serves(given.house, _caller(given))
    return mfa_pb2.DisableTotpRequest()


async def _regenerate(given: Given) -> Message:
    await _confirmed(given, _caller(given))
    await _one_factor_serves(given.house, _caller(given))
    return mfa_pb2.RegenerateRecoveryCodesRequest()


async def _finish(given: Given) -> Message:
    made: Message = await _made(given, _caller(given), Authenticator())
    return made


async def _delete(given: Given) -> Message:
    person = _caller(given)
    finish = await _made(given, person, Authenticator())
    made = await _stub(given).FinishPasskeyRegistration(finish, metadata=_metadata(given, person))
    await _one_factor_serves(given.house, person)
    return mfa_pb2.DeletePasskeyRequest(passkey_id=made.passkey_id)


async def _sign_in(given: Given) -> Message:
    device, person = Authenticator(), given.somebody
    finish = await _made(given, person, device)
    await _stub(given).FinishPasskeyRegistration(finish, metadata=person.metadata)
    asked = await _stub(given).StartPasskeyAssertion(mfa_pb2.StartPasskeyAssertionRequest())
    return mfa_pb2.SignInWithPasskeyRequest(credential_json=device.get(asked.options_json))


async def _complete(given: Given) -> Message:
    codes = await _confirmed(given, given.somebody)
    login = auth_pb2.LoginRequest(email=given.somebody.email, password=PASSWORD)
    with pytest.raises(aio.AioRpcError) as held:
        await given.house.auth.Login(login)
    challenge = info_of(held.value).metadata["challenge"]
    return mfa_pb2.CompleteSignInRequest(challenge=challenge, recovery_code=codes[0])


async def _step_up(given: Given) -> Message:
    await without_factors(given.house, _caller(given))
    return mfa_pb2.StepUpRequest(password=PASSWORD)


def _reset(given: Given) -> Message:
    return mfa_pb2.ResetMfaRequest(user_id=given.somebody.user_id, reason="contract")


FACTORIES: dict[Any, Any] = {
    mfa_pb2.EnrolTotpRequest: _enrol,
    mfa_pb2.ConfirmTotpRequest: _confirm,
    mfa_pb2.DisableTotpRequest: _disable,
    mfa_pb2.RegenerateRecoveryCodesRequest: _regenerate,
    mfa_pb2.StartPasskeyRegistrationRequest: (lambda _: mfa_pb2.StartPasskeyRegistrationRequest()),
    mfa_pb2.FinishPasskeyRegistrationRequest: _finish,
    mfa_pb2.DeletePasskeyRequest: _delete,
    mfa_pb2.ListFactorsRequest: lambda given: mfa_pb2.ListFactorsRequest(user_id=given.subject),
    mfa_pb2.StartPasskeyAssertionRequest: lambda _: mfa_pb2.StartPasskeyAssertionRequest(),
    mfa_pb2.SignInWithPasskeyRequest: _sign_in,
    mfa_pb2.CompleteSignInRequest: _complete,
    mfa_pb2.StepUpRequest: _step_up,
    mfa_pb2.ResetMfaRequest: _reset,
}
