"""AuthService on the wire: message in, use case, message out."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from finity.auth.v1 import auth_pb2, auth_pb2_grpc
from grpc import aio

from chassis.calls import current_call
from chassis.idempotency import key_of
from chassis.pages import PageTokens
from chassis.times import read_time, to_timestamp
from services.auth.domain import Role, User, normalise_email
from services.auth.service import Authority, AuthService, Tokens

DEFAULT_PAGE = 50
_TO_ROLE = {
    Role.FREE: auth_pb2.ROLE_FREE,
    Role.PRO: auth_pb2.ROLE_PRO,
    Role.ADMIN: auth_pb2.ROLE_ADMIN,
}
_FROM_ROLE = {number: role for role, number in _TO_ROLE.items()}
Context = aio.ServicerContext[Any, Any]


class AuthServicer(auth_pb2_grpc.AuthServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(
        self, service: AuthService, authority: Authority, derive: Callable[[str], bytes]
    ) -> None:
        """`derive` gives a key for one purpose; see ServiceSettings.derive."""
        self._service = service
        self._authority = authority
        self._pages = PageTokens(derive("pages"))
        self._secret = derive("idempotency")

    async def Register(
        self, request: auth_pb2.RegisterRequest, context: Context
    ) -> auth_pb2.RegisterResponse:
        user = await self._service.register(
            email=request.email,
            password=request.password,
            key=key_of(request, self._secret, owner=normalise_email(request.email)),
        )
        return auth_pb2.RegisterResponse(user=_user(user))

    async def Login(
        self, request: auth_pb2.LoginRequest, context: Context
    ) -> auth_pb2.LoginResponse:
        tokens, user = await self._service.login(
            email=request.email,
            password=request.password,
            key=key_of(request, self._secret, owner=normalise_email(request.email)),
        )
        return auth_pb2.LoginResponse(tokens=_tokens(tokens), user=_user(user))

    async def RefreshSession(
        self, request: auth_pb2.RefreshSessionRequest, context: Context
    ) -> auth_pb2.RefreshSessionResponse:
        tokens = await self._service.refresh(request.refresh_token)
        return auth_pb2.RefreshSessionResponse(tokens=_tokens(tokens))

    async def Logout(
        self, request: auth_pb2.LogoutRequest, context: Context
    ) -> auth_pb2.LogoutResponse:
        caller = current_call().caller
        if caller.session_id is not None:
            await self._service.logout(caller.session_id, by=caller.key)
        return auth_pb2.LogoutResponse()

    async def ValidateToken(
        self, request: auth_pb2.ValidateTokenRequest, context: Context
    ) -> auth_pb2.ValidateTokenResponse:
        said = await self._service.validate_token(request.token)
        if said is None:
            return auth_pb2.ValidateTokenResponse(active=False)
        return auth_pb2.ValidateTokenResponse(
            active=True,
            user_id=str(said.user_id),
            session_id=str(said.session_id),
            role=_TO_ROLE[said.role],
            expire_time=to_timestamp(said.expires_at),
        )

    async def GetUser(
        self, request: auth_pb2.GetUserRequest, context: Context
    ) -> auth_pb2.GetUserResponse:
        user = await self._service.get_user(UUID(request.user_id))
        return auth_pb2.GetUserResponse(user=_user(user))

    async def ListUsers(
        self, request: auth_pb2.ListUsersRequest, context: Context
    ) -> auth_pb2.ListUsersResponse:
        scope = f"ListUsers:{request.role}"
        before = None
        if request.page_token:
            before = UUID(self._pages.decode(request.page_token, scope)[0])
        users, last = await self._service.list_users(
            role=_FROM_ROLE.get(request.role),
            before=before,
            limit=request.page_size or DEFAULT_PAGE,
        )
        token = self._pages.encode((str(last),), scope) if last else ""
        return auth_pb2.ListUsersResponse(users=map(_user, users), next_page_token=token)

    async def SetRole(
        self, request: auth_pb2.SetRoleRequest, context: Context
    ) -> auth_pb2.SetRoleResponse:
        user = await self._service.set_role(
            user_id=UUID(request.user_id),
            role=_FROM_ROLE[request.role],
            reason=request.reason,
            actor=current_call().caller.key,
            key=key_of(request, self._secret),
        )
        return auth_pb2.SetRoleResponse(user=_user(user))

    async def GetSigningKeys(
        self, request: auth_pb2.GetSigningKeysRequest, context: Context
    ) -> auth_pb2.GetSigningKeysResponse:
        keys = await self._authority.signing_keys()
        return auth_pb2.GetSigningKeysResponse(keys=[auth_pb2.JsonWebKey(**key) for key in keys])

    async def ListRevocations(
        self, request: auth_pb2.ListRevocationsRequest, context: Context
    ) -> auth_pb2.ListRevocationsResponse:
        revoked = await self._authority.revocations(read_time(request, "since_time"))
        return auth_pb2.ListRevocationsResponse(
            session_ids=map(str, revoked.sessions),
            users=[
                auth_pb2.UserRevocation(user_id=str(user_id), min_token_version=version)
                for user_id, version in revoked.versions
            ],
            as_of_time=to_timestamp(revoked.as_of) if revoked.as_of else None,
        )


def _user(user: User) -> auth_pb2.User:
    return auth_pb2.User(
        user_id=str(user.id),
        email=user.email,
        role=_TO_ROLE[user.role],
        create_time=to_timestamp(user.created_at),
        last_login_time=to_timestamp(user.last_login) if user.last_login else None,
    )


def _tokens(tokens: Tokens) -> auth_pb2.SessionTokens:
    return auth_pb2.SessionTokens(
        session_id=str(tokens.session.id),
        access_token=tokens.access_token,
        access_token_expire_time=to_timestamp(tokens.access_token_expires_at),
        refresh_token=tokens.refresh_token,
        session_expire_time=to_timestamp(tokens.session.expires_at),
    )
