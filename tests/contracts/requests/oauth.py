"""Requests of OAuthService, by way of the GitHub that stands beside every house."""

from typing import Any
from uuid import uuid4

from finity.auth.v1 import oauth_pb2, oauth_pb2_grpc
from google.protobuf.message import Message
from grpc import aio

from tests import github
from tests.contracts.requests import Factory
from tests.contracts.requests.given import Given


def _start_sign_in(_: Given) -> oauth_pb2.StartSignInRequest:
    return oauth_pb2.StartSignInRequest(provider="github", redirect_uri=github.REDIRECT_URI)


def _start_linking(_: Given) -> oauth_pb2.StartLinkingRequest:
    return oauth_pb2.StartLinkingRequest(provider="github", redirect_uri=github.REDIRECT_URI)


async def _finish_sign_in(given: Given) -> Message:
    stub = oauth_pb2_grpc.OAuthServiceStub(given.house.auth_channel)
    started = await stub.StartSignIn(_start_sign_in(given))
    code, state = github.consent(started.authorization_url, github.Person())
    return oauth_pb2.FinishSignInRequest(flow=started.flow, authorization_code=code, state=state)


async def _finish_linking(given: Given) -> Message:
    stub = oauth_pb2_grpc.OAuthServiceStub(given.house.auth_channel)
    try:
        started = await stub.StartLinking(_start_linking(given), metadata=given.metadata)
    except aio.AioRpcError:
        # Whoever may not start one is shown the flow of somebody else.
        metadata = given.somebody.metadata
        started = await stub.StartLinking(_start_linking(given), metadata=metadata)
    code, state = github.consent(started.authorization_url, github.Person())
    return oauth_pb2.FinishLinkingRequest(flow=started.flow, authorization_code=code, state=state)


FACTORIES: dict[Any, Factory] = {
    oauth_pb2.StartSignInRequest: _start_sign_in,
    oauth_pb2.FinishSignInRequest: _finish_sign_in,
    oauth_pb2.StartLinkingRequest: _start_linking,
    oauth_pb2.FinishLinkingRequest: _finish_linking,
    oauth_pb2.ListIdentitiesRequest: lambda _: oauth_pb2.ListIdentitiesRequest(page_size=3),
    oauth_pb2.UnlinkIdentityRequest: lambda _: oauth_pb2.UnlinkIdentityRequest(
        identity_id=str(uuid4())
    ),
}
