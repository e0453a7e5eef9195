"""What is looked at again although the token still says it, through real channels."""

from typing import Any
from uuid import UUID

from finity.auth.v1 import (
    auth_pb2,
    mfa_pb2,
    oauth_pb2,
    oauth_pb2_grpc,
    password_pb2,
    password_pb2_grpc,
)
from grpc import StatusCode

from tests import github
from tests.auth.test_mfa_rpc import STEP_UP, enrol, refusal, stub
from tests.factories import connect_owner
from tests.fakes import FakeClock
from tests.owner import verify_address
from tests.running import PASSWORD, House, Metadata, bearer

DENIED = (StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")


async def test_a_token_of_a_former_administrator(house: House) -> None:
    """It still says admin and is good; the account is looked at."""
    person, admin = await house.person(), await house.person(role=auth_pb2.ROLE_ADMIN)
    await house.person(role=auth_pb2.ROLE_ADMIN)
    async with connect_owner(house.database_url) as owner:
        await owner.execute("UPDATE users SET role = 'free' WHERE id = $1", UUID(admin.user_id))
    role = auth_pb2.SetRoleRequest(user_id=person.user_id, role=auth_pb2.ROLE_PRO, reason="x")
    assert await refusal(house.auth.SetRole(role, metadata=admin.metadata)) == DENIED
    reset = mfa_pb2.ResetMfaRequest(user_id=person.user_id, reason="x")
    assert await refusal(stub(house).ResetMfa(reset, metadata=admin.metadata)) == DENIED


async def test_a_password_beside_a_second_factor(house: House, clock: FakeClock) -> None:
    """A token of one factor is STEP_UP_REQUIRED, one of both changes it while it is fresh."""
    person = await house.person()
    totp, _ = await enrol(house, person, clock)
    change = password_pb2_grpc.PasswordServiceStub(house.auth_channel).ChangePassword
    request = password_pb2.ChangePasswordRequest(
        current_password=PASSWORD, new_password="another horse battery"
    )
    assert await refusal(change(request, metadata=person.metadata)) == STEP_UP

    async def step_up() -> Metadata:
        proof = mfa_pb2.StepUpRequest(totp_code=totp.at(clock.now()))
        return bearer((await stub(house).StepUp(proof, metadata=person.metadata)).access_token)

    clock.advance(seconds=30)
    both = await step_up()
    clock.advance(minutes=11)
    assert await refusal(change(request, metadata=both)) == STEP_UP
    await change(request, metadata=await step_up())


async def test_an_address_that_nobody_proved_gets_no_way_in(house: House) -> None:
    """EMAIL_NOT_VERIFIED for an app, a passkey and an identity, until the address is verified."""
    person = await house.person(verified=False)
    link = oauth_pb2.StartLinkingRequest(provider="github", redirect_uri=github.REDIRECT_URI)
    oauth = oauth_pb2_grpc.OAuthServiceStub(house.auth_channel)
    calls: list[tuple[Any, Any]] = [
        (stub(house).EnrolTotp, mfa_pb2.EnrolTotpRequest()),
        (stub(house).StartPasskeyRegistration, mfa_pb2.StartPasskeyRegistrationRequest()),
        (oauth.StartLinking, link),
    ]
    for call, request in calls:
        assert await refusal(call(request, metadata=person.metadata)) == (
            StatusCode.FAILED_PRECONDITION,
            "EMAIL_NOT_VERIFIED",
        )
    async with connect_owner(house.database_url) as owner:
        await verify_address(owner, person.user_id)
    for call, request in calls:
        await call(request, metadata=person.metadata)
