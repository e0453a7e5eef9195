"""A valid request for every method; a request type without a factory fails the test that asks."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from finity.auth.v1 import auth_pb2
from finity.usage.v1 import usage_pb2
from google.protobuf.message import Message

from chassis.clock import Clock
from chassis.contract import Method
from chassis.ids import uuid7
from tests.running import PASSWORD, Person


@dataclass(frozen=True, slots=True)
class Given:
    """What requests may be about."""

    clock: Clock
    somebody: Person
    """A user who is logged in and has an account."""
    subject: str = ""
    """Whom a request with a subject names."""

    def event(self) -> usage_pb2.UsageEvent:
        return usage_pb2.UsageEvent(
            event_id=str(uuid7(self.clock.now())),
            user_id=self.somebody.user_id,
            tool_name="contract",
            credits=0,
        )


def _register(_: Given) -> Message:
    email = f"{secrets.token_hex(8)}@example.com"
    return auth_pb2.RegisterRequest(email=email, password=PASSWORD)


def _login(given: Given) -> Message:
    return auth_pb2.LoginRequest(email=given.somebody.email, password=PASSWORD)


def _refresh(given: Given) -> Message:
    token = given.somebody.tokens.refresh_token
    return auth_pb2.RefreshSessionRequest(refresh_token=token)


def _validate(given: Given) -> Message:
    return auth_pb2.ValidateTokenRequest(token=given.somebody.tokens.access_token)


def _set_role(given: Given) -> Message:
    return auth_pb2.SetRoleRequest(
        user_id=given.somebody.user_id, role=auth_pb2.ROLE_PRO, reason="contract"
    )


def _grant(given: Given) -> Message:
    return usage_pb2.GrantCreditsRequest(
        user_id=given.somebody.user_id,
        amount=1,
        source="contract",
        source_ref=secrets.token_hex(8),
    )


def _record(given: Given) -> Message:
    return usage_pb2.RecordUsageRequest(event=given.event())


def _record_batch(given: Given) -> Message:
    return usage_pb2.RecordUsageBatchRequest(events=[given.event(), given.event()])


FACTORIES: dict[Any, Callable[[Given], Message]] = {
    auth_pb2.RegisterRequest: _register,
    auth_pb2.LoginRequest: _login,
    auth_pb2.RefreshSessionRequest: _refresh,
    auth_pb2.LogoutRequest: lambda _: auth_pb2.LogoutRequest(),
    auth_pb2.ValidateTokenRequest: _validate,
    auth_pb2.GetUserRequest: lambda given: auth_pb2.GetUserRequest(user_id=given.subject),
    auth_pb2.ListUsersRequest: lambda _: auth_pb2.ListUsersRequest(page_size=3),
    auth_pb2.SetRoleRequest: _set_role,
    auth_pb2.GetSigningKeysRequest: lambda _: auth_pb2.GetSigningKeysRequest(),
    auth_pb2.ListRevocationsRequest: lambda _: auth_pb2.ListRevocationsRequest(),
    usage_pb2.OpenAccountRequest: lambda given: usage_pb2.OpenAccountRequest(
        user_id=given.somebody.user_id
    ),
    usage_pb2.GrantCreditsRequest: _grant,
    usage_pb2.GetBalanceRequest: lambda given: usage_pb2.GetBalanceRequest(user_id=given.subject),
    usage_pb2.RecordUsageRequest: _record,
    usage_pb2.RecordUsageBatchRequest: _record_batch,
    usage_pb2.ListUsageRequest: lambda given: usage_pb2.ListUsageRequest(user_id=given.subject),
}


def request_for(method: Method, given: Given) -> Message:
    """Returns a request of the method's type that its service accepts."""
    factory = FACTORIES.get(method.request)
    if factory is None:
        pytest.fail(f"{method.request.__name__} has no factory in tests/contracts/requests.py")
    return factory(given)
