"""Requests of SessionService."""

from collections.abc import Callable
from typing import Any

from finity.auth.v1 import session_pb2
from google.protobuf.message import Message

from tests.contracts.requests.given import Given

CURRENT = "current"


def _session_of(given: Given) -> str:
    """Returns a session of whom the request names: somebody's own, or else the caller's."""
    named = given.subject == given.somebody.user_id
    return given.somebody.tokens.session_id if named else CURRENT


FACTORIES: dict[Any, Callable[[Given], Message]] = {
    session_pb2.ListSessionsRequest: lambda given: session_pb2.ListSessionsRequest(
        user_id=given.subject, include_ended=True
    ),
    session_pb2.NameSessionRequest: lambda given: session_pb2.NameSessionRequest(
        user_id=given.subject, session_id=CURRENT, device="contract"
    ),
    session_pb2.RevokeSessionRequest: lambda given: session_pb2.RevokeSessionRequest(
        user_id=given.subject, session_id=_session_of(given), reason="contract"
    ),
    session_pb2.RevokeOtherSessionsRequest: lambda _: session_pb2.RevokeOtherSessionsRequest(),
    session_pb2.ExplainSessionRequest: lambda given: session_pb2.ExplainSessionRequest(
        user_id=given.subject, session_id=_session_of(given)
    ),
}
