"""Requests of PasswordService."""

from collections.abc import Callable
from typing import Any

from finity.auth.v1 import auth_pb2, password_pb2
from google.protobuf.message import Message

from tests.contracts.requests.given import Given
from tests.running import PASSWORD


def _check(given: Given) -> Message:
    return password_pb2.CheckPasswordStrengthRequest(password=PASSWORD, email=given.somebody.email)


def _change(_: Given) -> Message:
    # Whoever calls has this password and keeps it, for the next test that logs them in.
    return password_pb2.ChangePasswordRequest(current_password=PASSWORD, new_password=PASSWORD)


def _import(given: Given) -> Message:
    user = password_pb2.ImportedUser(email=given.somebody.email, role=auth_pb2.ROLE_FREE)
    return password_pb2.ImportUsersRequest(users=[user])


FACTORIES: dict[Any, Callable[[Given], Message]] = {
    password_pb2.CheckPasswordStrengthRequest: _check,
    password_pb2.ChangePasswordRequest: _change,
    password_pb2.ImportUsersRequest: _import,
}
