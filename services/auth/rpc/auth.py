"""AuthService on the wire: message in, use case, message out."""

from uuid import UUID

from finity.auth.v1 import auth_pb2, auth_pb2_grpc

from chassis.calls import current_call
from chassis.idempotency import key_of
from chassis.pages import PageTokens
from chassis.times import read_time, to_timestamp
from services.auth.domain.users import normalise_email
from services.auth.rpc.messages import FROM_ROLE, TO_ROLE, Context, means, to_tokens, to_user
from services.auth.service.accounts import AccountService
from services.auth.service.authority import Authority
from services.auth.service.room import Room
from services.auth.service.sessions import SessionService

DEFAULT_PAGE = 50


class AuthServicer(auth_pb2_grpc.AuthServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(
        self,
        room: Room,
        accounts: AccountService,
        sessions: SessionService,
        authority: Authority,
    ) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._authority = authority
        self._pages = PageTokens(room.derive("pages"))
        self._secret = room.derive("idempotency")

    async def Register(
        self, request: auth_pb2.RegisterRequest, context: Context
    ) -> auth_pb2.RegisterResponse:
        user = await self._accounts.register(
            email=request.email,
            password=request.password,
            key=key_of(request, self._secret, owner=normalise_email(request.email)),
            invite_token=request.invite_token,
            address=current_call().address(),
        )
        return auth_pb2.RegisterResponse(user=to_user(user))

    async def Login(
        self, request: auth_pb2.LoginRequest, context: Context
    ) -> auth_pb2.LoginResponse:
        tokens, user = await self._sessions.login(
            email=request.email,
            password=request.password,
            means=means("pwd", device=request.device),
            key=key_of(request, self._secret, owner=normalise_email(request.email)),
        )
        return auth_pb2.LoginResponse(tokens=to_tokens(tokens), user=to_user(user))

    async def RefreshSession(
        self, request: auth_pb2.RefreshSessionRequest, context: Context
    ) -> auth_pb2.RefreshSessionResponse:
        tokens = await self._sessions.refresh(request.refresh_token, current_call().address())
        return auth_pb2.RefreshSessionResponse(tokens=to_tokens(tokens))

    async def Logout(
        self, request: auth_pb2.LogoutRequest, context: Context
    ) -> auth_pb2.LogoutResponse:
        caller = current_call().caller
        if caller.session_id is not None:
            await self._sessions.logout(caller.session_id, by=caller.actor_key)
        return auth_pb2.LogoutResponse()

    async def RevokeToken(
        self, request: auth_pb2.RevokeTokenRequest, context: Context
    ) -> auth_pb2.RevokeTokenResponse:
        await self._sessions.revoke_token(request.refresh_token, current_call().address())
        return auth_pb2.RevokeTokenResponse()

    async def ValidateToken(
        self, request: auth_pb2.ValidateTokenRequest, context: Context
    ) -> auth_pb2.ValidateTokenResponse:
        said = await self._sessions.validate_token(request.token)
        if said is None:
            return auth_pb2.ValidateTokenResponse(active=False)
        return auth_pb2.ValidateTokenResponse(
            active=True,
            user_id=str(said.user_id),
            session_id=str(said.session_id),
            role=TO_ROLE[said.role],
            expire_time=to_timestamp(said.expires_at),
            issue_time=to_timestamp(said.issued_at),
            auth_time=to_timestamp(said.auth_time),
            acr=said.acr,
            amr=said.amr,
            token_id=said.token_id,
            actor_user_id=str(said.actor) if said.actor else "",
        )

    async def GetUser(
        self, request: auth_pb2.GetUserRequest, context: Context
    ) -> auth_pb2.GetUserResponse:
        user = await self._accounts.get_user(UUID(request.user_id))
        return auth_pb2.GetUserResponse(user=to_user(user))

    async def ListUsers(
        self, request: auth_pb2.ListUsersRequest, context: Context
    ) -> auth_pb2.ListUsersResponse:
        scope = f"ListUsers:{request.role}"
        before = None
        if request.page_token:
            before = UUID(self._pages.decode(request.page_token, scope)[0])
        users, last = await self._accounts.list_users(
            role=FROM_ROLE.get(request.role),
            before=before,
            limit=request.page_size or DEFAULT_PAGE,
        )
        token = self._pages.encode((str(last),), scope) if last else ""
        return auth_pb2.ListUsersResponse(users=map(to_user, users), next_page_token=token)

    async def SetRole(
        self, request: auth_pb2.SetRoleRequest, context: Context
    ) -> auth_pb2.SetRoleResponse:
        user = await self._accounts.set_role(
            user_id=UUID(request.user_id),
            role=FROM_ROLE[request.role],
            reason=request.reason,
            actor=current_call().caller,
            key=key_of(request, self._secret),
        )
        return auth_pb2.SetRoleResponse(user=to_user(user))

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
            keys_version=revoked.keys,
        )
