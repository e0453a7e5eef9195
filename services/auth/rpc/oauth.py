"""OAuthService on the wire: message in, use case, message out."""

from uuid import UUID

from finity.auth.v1 import oauth_pb2, oauth_pb2_grpc

from chassis.calls import current_call
from chassis.pages import PageTokens
from chassis.times import to_timestamp
from services.auth.domain.oauth import Answer, Identity
from services.auth.rpc.messages import Context, means, to_tokens, to_user
from services.auth.service.oauth import OAuthService
from services.auth.service.room import Room

DEFAULT_PAGE = 20


class OAuthServicer(oauth_pb2_grpc.OAuthServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(self, room: Room, oauth: OAuthService) -> None:
        self._oauth = oauth
        self._pages = PageTokens(room.derive("pages"))

    async def StartSignIn(
        self, request: oauth_pb2.StartSignInRequest, context: Context
    ) -> oauth_pb2.StartSignInResponse:
        started = await self._oauth.start_sign_in(
            provider=request.provider,
            redirect_uri=request.redirect_uri,
            address=current_call().address(),
        )
        return oauth_pb2.StartSignInResponse(
            authorization_url=started.authorization_url,
            flow=started.flow,
            expire_time=to_timestamp(started.expires_at),
        )

    async def FinishSignIn(
        self, request: oauth_pb2.FinishSignInRequest, context: Context
    ) -> oauth_pb2.FinishSignInResponse:
        tokens, user, registered = await self._oauth.finish_sign_in(
            flow=request.flow,
            answer=_answer(request),
            means=means("fed", device=request.device),
            invite_token=request.invite_token,
        )
        return oauth_pb2.FinishSignInResponse(
            tokens=to_tokens(tokens), user=to_user(user), registered=registered
        )

    async def StartLinking(
        self, request: oauth_pb2.StartLinkingRequest, context: Context
    ) -> oauth_pb2.StartLinkingResponse:
        started = await self._oauth.start_linking(
            current_call().caller, provider=request.provider, redirect_uri=request.redirect_uri
        )
        return oauth_pb2.StartLinkingResponse(
            authorization_url=started.authorization_url,
            flow=started.flow,
            expire_time=to_timestamp(started.expires_at),
        )

    async def FinishLinking(
        self, request: oauth_pb2.FinishLinkingRequest, context: Context
    ) -> oauth_pb2.FinishLinkingResponse:
        identity = await self._oauth.finish_linking(
            current_call().caller, flow=request.flow, answer=_answer(request)
        )
        return oauth_pb2.FinishLinkingResponse(identity=_identity(identity))

    async def ListIdentities(
        self, request: oauth_pb2.ListIdentitiesRequest, context: Context
    ) -> oauth_pb2.ListIdentitiesResponse:
        caller = current_call().caller
        scope = f"ListIdentities:{caller.key}"
        before = None
        if request.page_token:
            before = UUID(self._pages.decode(request.page_token, scope)[0])
        identities, last = await self._oauth.list_identities(
            caller, before=before, limit=request.page_size or DEFAULT_PAGE
        )
        token = self._pages.encode((str(last),), scope) if last else ""
        return oauth_pb2.ListIdentitiesResponse(
            identities=map(_identity, identities), next_page_token=token
        )

    async def UnlinkIdentity(
        self, request: oauth_pb2.UnlinkIdentityRequest, context: Context
    ) -> oauth_pb2.UnlinkIdentityResponse:
        await self._oauth.unlink_identity(current_call().caller, UUID(request.identity_id))
        return oauth_pb2.UnlinkIdentityResponse()


def _answer(request: oauth_pb2.FinishSignInRequest | oauth_pb2.FinishLinkingRequest) -> Answer:
    return Answer(request.state, request.authorization_code, request.error, request.iss)


def _identity(identity: Identity) -> oauth_pb2.Identity:
    return oauth_pb2.Identity(
        identity_id=str(identity.id),
        provider=identity.provider,
        email=identity.email,
        create_time=to_timestamp(identity.created_at),
        last_use_time=to_timestamp(identity.last_used_at),
    )
