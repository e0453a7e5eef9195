"""AdminService on the wire: message in, use case, message out."""

from datetime import datetime
from uuid import UUID

from finity.auth.v1 import admin_pb2, admin_pb2_grpc

from chassis.calls import current_call
from chassis.idempotency import key_of
from chassis.pages import PageTokens
from chassis.times import read_time, to_timestamp
from services.auth.domain.admin import LogFilter, UserFilter, UserState, state_of
from services.auth.domain.admin_logs import AdminLog
from services.auth.domain.users import User, normalise_email
from services.auth.rpc.messages import FROM_ROLE, Context, to_tokens, to_user
from services.auth.service.admin import AdminService
from services.auth.service.room import Room

DEFAULT_PAGE = 50
TO_STATE = {
    UserState.ACTIVE: admin_pb2.USER_STATE_ACTIVE,
    UserState.BANNED: admin_pb2.USER_STATE_BANNED,
    UserState.DELETING: admin_pb2.USER_STATE_DELETING,
    UserState.ERASED: admin_pb2.USER_STATE_ERASED,
}
FROM_STATE = {number: state for state, number in TO_STATE.items()}


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(self, room: Room, admin: AdminService) -> None:
        self._admin = admin
        self._clock = room.clock
        self._pages = PageTokens(room.derive("pages"))
        self._secret = room.derive("idempotency")

    async def SearchUsers(
        self, request: admin_pb2.SearchUsersRequest, context: Context
    ) -> admin_pb2.SearchUsersResponse:
        wanted = UserFilter(
            email_prefix=normalise_email(request.email_prefix),
            role=FROM_ROLE.get(request.role),
            state=FROM_STATE.get(request.state),
            created_from=read_time(request, "created_from_time"),
            created_until=read_time(request, "created_until_time"),
        )
        scope, before = f"SearchUsers:{wanted}", None
        if request.page_token:
            created, last = self._pages.decode(request.page_token, scope)
            before = datetime.fromisoformat(created), UUID(last)
        users, more = await self._admin.search_users(
            wanted, before=before, limit=request.page_size or DEFAULT_PAGE
        )
        token = ""
        if more:
            key = users[-1].created_at.isoformat(), str(users[-1].id)
            token = self._pages.encode(key, scope)
        return admin_pb2.SearchUsersResponse(users=map(self._user, users), next_page_token=token)

    async def BanUser(
        self, request: admin_pb2.BanUserRequest, context: Context
    ) -> admin_pb2.BanUserResponse:
        user = await self._admin.ban_user(
            user_id=UUID(request.user_id),
            reason=request.reason,
            until=read_time(request, "expire_time"),
            caller=current_call().caller,
            key=key_of(request, self._secret),
        )
        return admin_pb2.BanUserResponse(user=self._user(user))

    async def UnbanUser(
        self, request: admin_pb2.UnbanUserRequest, context: Context
    ) -> admin_pb2.UnbanUserResponse:
        user = await self._admin.unban_user(
            user_id=UUID(request.user_id),
            reason=request.reason,
            caller=current_call().caller,
            key=key_of(request, self._secret),
        )
        return admin_pb2.UnbanUserResponse(user=self._user(user))

    async def RevokeUserSessions(
        self, request: admin_pb2.RevokeUserSessionsRequest, context: Context
    ) -> admin_pb2.RevokeUserSessionsResponse:
        ended = await self._admin.revoke_sessions(
            user_id=UUID(request.user_id),
            reason=request.reason,
            caller=current_call().caller,
            key=key_of(request, self._secret),
        )
        return admin_pb2.RevokeUserSessionsResponse(ended_sessions=ended)

    async def ImpersonateUser(
        self, request: admin_pb2.ImpersonateUserRequest, context: Context
    ) -> admin_pb2.ImpersonateUserResponse:
        call = current_call()
        tokens, user = await self._admin.impersonate(
            user_id=UUID(request.user_id),
            reason=request.reason,
            address=call.address(),
            caller=call.caller,
            key=key_of(request, self._secret),
        )
        return admin_pb2.ImpersonateUserResponse(tokens=to_tokens(tokens), user=to_user(user))

    async def ListAdminLogs(
        self, request: admin_pb2.ListAdminLogsRequest, context: Context
    ) -> admin_pb2.ListAdminLogsResponse:
        wanted = LogFilter(
            target=UUID(request.target_user_id) if request.target_user_id else None,
            actor=request.actor or None,
            action=request.action or None,
            start=read_time(request, "from_time"),
            end=read_time(request, "until_time"),
        )
        scope, before = f"ListAdminLogs:{wanted}", None
        if request.page_token:
            before = int(self._pages.decode(request.page_token, scope)[0])
        logs, more = await self._admin.list_logs(
            wanted, before=before, limit=request.page_size or DEFAULT_PAGE
        )
        token = self._pages.encode((str(logs[-1].seq),), scope) if more else ""
        return admin_pb2.ListAdminLogsResponse(logs=map(to_log, logs), next_page_token=token)

    def _user(self, user: User) -> admin_pb2.AdminUser:
        requested = user.deletion_requested_at
        return admin_pb2.AdminUser(
            user=to_user(user),
            state=TO_STATE[state_of(user, self._clock.now())],
            ban_time=to_timestamp(user.banned_at) if user.banned_at else None,
            ban_expire_time=to_timestamp(user.banned_until) if user.banned_until else None,
            ban_reason=user.ban_reason or "",
            deletion_request_time=to_timestamp(requested) if requested else None,
        )


def to_log(log: AdminLog) -> admin_pb2.AdminLog:
    return admin_pb2.AdminLog(
        seq=log.seq,
        log_id=str(log.id),
        actor=log.actor,
        action=log.action,
        target_user_id=str(log.target) if log.target else "",
        details=log.details,
        create_time=to_timestamp(log.created_at),
        hash=log.hash.hex(),
    )
