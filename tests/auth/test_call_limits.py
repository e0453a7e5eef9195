"""Public calls that cost something: no network makes any number of them."""

from collections.abc import Awaitable, Callable

import pytest
from finity.auth.v1 import (
    auth_pb2,
    mfa_pb2,
    mfa_pb2_grpc,
    oauth_pb2,
    oauth_pb2_grpc,
    password_pb2,
    password_pb2_grpc,
)
from grpc import StatusCode, aio

from services.auth.service.attempts import CALLS_PER_GUESS
from tests import github
from tests.factories import answers_with
from tests.fakes import FakeClock
from tests.running import House, Metadata, open_house, refusal_of

HELD_OFF = (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_ATTEMPTS")
Ask = Callable[[House, Metadata], Awaitable[object]]


def start_assertion(house: House, where: Metadata) -> Awaitable[object]:
    stub = mfa_pb2_grpc.MfaServiceStub(house.auth_channel)
    return stub.StartPasskeyAssertion(mfa_pb2.StartPasskeyAssertionRequest(), metadata=where)


def check_strength(house: House, where: Metadata) -> Awaitable[object]:
    stub = password_pb2_grpc.PasswordServiceStub(house.auth_channel)
    request = password_pb2.CheckPasswordStrengthRequest(password="horse")
    return stub.CheckPasswordStrength(request, metadata=where)


def start_sign_in(house: House, where: Metadata) -> Awaitable[object]:
    stub = oauth_pb2_grpc.OAuthServiceStub(house.auth_channel)
    request = oauth_pb2.StartSignInRequest(provider="github", redirect_uri=github.REDIRECT_URI)
    return stub.StartSignIn(request, metadata=where)


def finish_sign_in(house: House, where: Metadata) -> Awaitable[object]:
    stub = oauth_pb2_grpc.OAuthServiceStub(house.auth_channel)
    request = oauth_pb2.FinishSignInRequest(flow="f" * 43, state="s", authorization_code="c")
    return stub.FinishSignIn(request, metadata=where)


def revoke_token(house: House, where: Metadata) -> Awaitable[object]:
    request = auth_pb2.RevokeTokenRequest(refresh_token="r")
    return house.auth.RevokeToken(request, metadata=where)


CALLS: list[tuple[Ask, str]] = [
    (start_assertion, ""),
    (check_strength, ""),
    (start_sign_in, ""),
    (revoke_token, ""),
    (finish_sign_in, "OAUTH_STATE_INVALID"),
]


def at(address: str) -> Metadata:
    return (("x-forwarded-for", address),)


async def test_a_network_is_held_off(database_url: str, redis_url: str, clock: FakeClock) -> None:
    """Past the bound, with the time to wait, from every address of the network; others go on."""
    async with open_house(database_url, redis_url, "grpcio", clock, guesses_per_address=1) as house:
        for ask, reason in CALLS:
            for number in range(CALLS_PER_GUESS + 1):
                assert await answers_with(ask(house, at(f"2001:db8:1:2::{number}")), reason)
            with pytest.raises(aio.AioRpcError) as refused:
                await ask(house, at("2001:db8:1:2:3:4:5:6"))
            assert refusal_of(refused.value) == HELD_OFF
            assert await answers_with(ask(house, at("2001:db8:1:3::1")), reason)
