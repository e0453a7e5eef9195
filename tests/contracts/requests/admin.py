"""Requests of AdminService."""

from collections.abc import Callable
from typing import Any

from finity.auth.v1 import admin_pb2
from google.protobuf.message import Message

from tests.contracts.requests.given import Given

WHY = "contract"


def _ban(given: Given) -> Message:
    return admin_pb2.BanUserRequest(user_id=given.somebody.user_id, reason=WHY)


def _unban(given: Given) -> Message:
    return admin_pb2.UnbanUserRequest(user_id=given.somebody.user_id, reason=WHY)


def _revoke(given: Given) -> Message:
    return admin_pb2.RevokeUserSessionsRequest(user_id=given.somebody.user_id, reason=WHY)


def _impersonate(given: Given) -> Message:
    return admin_pb2.ImpersonateUserRequest(user_id=given.somebody.user_id, reason=WHY)


FACTORIES: dict[Any, Callable[[Given], Message]] = {
    admin_pb2.SearchUsersRequest: lambda _: admin_pb2.SearchUsersRequest(page_size=3),
    admin_pb2.BanUserRequest: _ban,
    admin_pb2.UnbanUserRequest: _unban,
    admin_pb2.RevokeUserSessionsRequest: _revoke,
    admin_pb2.ImpersonateUserRequest: _impersonate,
    admin_pb2.ListAdminLogsRequest: lambda _: admin_pb2.ListAdminLogsRequest(page_size=3),
}
