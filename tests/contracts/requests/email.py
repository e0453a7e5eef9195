"""Requests of EmailService; a secret is one that was mailed to somebody new."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from finity.auth.v1 import email_pb2, email_pb2_grpc
from google.protobuf.message import Message

from tests.contracts.requests.given import Given
from tests.factories import an_address, connect_owner
from tests.mailbox import newest
from tests.running import PASSWORD


async def _verify(given: Given) -> Message:
    person = await given.house.person()
    return email_pb2.VerifyEmailRequest(
        secret=await _secret(given, "email_verification", person.email)
    )


async def _reset(given: Given) -> Message:
    person = await given.house.person()
    request = email_pb2.RequestPasswordResetRequest(email=person.email)
    await _stub(given).RequestPasswordReset(request)
    return email_pb2.ResetPasswordRequest(
        secret=await _secret(given, "password_reset", person.email), new_password=PASSWORD
    )


async def _sign_in(given: Given) -> Message:
    person = await given.house.person()
    await _stub(given).RequestSignIn(email_pb2.RequestSignInRequest(email=person.email))
    return email_pb2.SignInRequest(secret=await _secret(given, "sign_in", person.email))


async def _change(given: Given) -> Message:
    # Whoever calls may have asked a moment ago.
    async with connect_owner(given.house.database_url) as owner:
        await owner.execute("DELETE FROM email_requests WHERE purpose = 'change'")
    return email_pb2.RequestEmailChangeRequest(new_email=an_address())


async def _confirm(given: Given) -> Message:
    person, to = await given.house.person(), an_address()
    request = email_pb2.RequestEmailChangeRequest(new_email=to)
    await _stub(given).RequestEmailChange(request, metadata=person.metadata)
    return email_pb2.ConfirmEmailChangeRequest(secret=await _secret(given, "email_change", to))


def _notify(given: Given) -> Message:
    return email_pb2.NotifyUserRequest(
        user_id=given.somebody.user_id,
        idempotency_key=secrets.token_hex(8),
        usage_threshold=email_pb2.UsageThreshold(month="2026-01", percent=80, used=8, available=2),
    )


async def _secret(given: Given, template: str, to: str) -> str:
    async with connect_owner(given.house.database_url) as owner:
        return (await newest(owner, template, to)).secret


def _stub(given: Given) -> email_pb2_grpc.EmailServiceStub:
    return email_pb2_grpc.EmailServiceStub(given.house.auth_channel)


FACTORIES: dict[Any, Callable[[Given], Message | Awaitable[Message]]] = {
    email_pb2.RequestEmailVerificationRequest: lambda _: (
        email_pb2.RequestEmailVerificationRequest()
    ),
    email_pb2.VerifyEmailRequest: _verify,
    email_pb2.RequestPasswordResetRequest: lambda given: email_pb2.RequestPasswordResetRequest(
        email=given.somebody.email
    ),
    email_pb2.ResetPasswordRequest: _reset,
    email_pb2.RequestSignInRequest: lambda given: email_pb2.RequestSignInRequest(
        email=given.somebody.email
    ),
    email_pb2.SignInRequest: _sign_in,
    email_pb2.RequestEmailChangeRequest: _change,
    email_pb2.ConfirmEmailChangeRequest: _confirm,
    email_pb2.NotifyUserRequest: _notify,
}
