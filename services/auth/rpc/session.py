"""SessionService on the wire: message in, use case, message out."""

from uuid import UUID

from finity.auth.v1 import session_pb2, session_pb2_grpc

from chassis.callers import ADMIN_ROLE, Kind
from chassis.calls import current_call
from chassis.pages import PageTokens
from chassis.times import to_timestamp
from services.auth.domain.session_list import Ender, Replay, Shown, ender_of
from services.auth.rpc.messages import Context
from services.auth.service.room import Room
from services.auth.service.session_list import SessionListService

DEFAULT_PAGE = 50
CURRENT = "current"
# Of a caller without a session, whose "current" is nobody's.
_NONE = UUID(int=0)
_TO_ENDER = {
    Ender.USER: session_pb2.SESSION_ENDER_USER,
    Ender.ADMIN: session_pb2.SESSION_ENDER_ADMIN,
    Ender.SERVICE: session_pb2.SESSION_ENDER_SERVICE,
    Ender.SYSTEM: session_pb2.SESSION_ENDER_SYSTEM,
}


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(self, room: Room, sessions: SessionListService) -> None:
        self._sessions = sessions
        self._pages = PageTokens(room.derive("pages"))

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        scope = f"ListSessions:{request.user_id}:{request.include_ended}"
        before = None
        if request.page_token:
            before = UUID(self._pages.decode(request.page_token, scope)[0])
        shown, last = await self._sessions.list(
            UUID(request.user_id),
            include_ended=request.include_ended,
            before=before,
            limit=request.page_size or DEFAULT_PAGE,
        )
        token = self._pages.encode((str(last),), scope) if last else ""
        return session_pb2.ListSessionsResponse(
            sessions=map(_session, shown), next_page_token=token
        )

    async def NameSession(
        self, request: session_pb2.NameSessionRequest, context: Context
    ) -> session_pb2.NameSessionResponse:
        named = await self._sessions.name(
            UUID(request.user_id), _id_of(request.session_id), request.device
        )
        return session_pb2.NameSessionResponse(session=_session(named))

    async def RevokeSession(
        self, request: session_pb2.RevokeSessionRequest, context: Context
    ) -> session_pb2.RevokeSessionResponse:
        revoked = await self._sessions.revoke(
            UUID(request.user_id),
            _id_of(request.session_id),
            caller=current_call().caller,
            why=request.reason,
        )
        return session_pb2.RevokeSessionResponse(session=_session(revoked))

    async def RevokeOtherSessions(
        self, request: session_pb2.RevokeOtherSessionsRequest, context: Context
    ) -> session_pb2.RevokeOtherSessionsResponse:
        caller = current_call().caller
        ended = await self._sessions.revoke_others(
            caller.user_id or _NONE, caller.session_id or _NONE, actor=caller.key
        )
        return session_pb2.RevokeOtherSessionsResponse(ended=ended)

    async def ExplainSession(
        self, request: session_pb2.ExplainSessionRequest, context: Context
    ) -> session_pb2.ExplainSessionResponse:
        caller, user_id = current_call().caller, UUID(request.user_id)
        shown = await self._sessions.explain(user_id, _id_of(request.session_id))
        answer = session_pb2.ExplainSessionResponse(session=_session(shown), alive=not shown.end)
        if shown.end is not None:
            answer.ended_by = _TO_ENDER[ender_of(shown.end.by, user_id)]
            if caller.kind is Kind.SERVICE or caller.role == ADMIN_ROLE:
                answer.ended_by_caller = shown.end.by
        if shown.listed.replay is not None:
            answer.replay.CopyFrom(_replay(shown.listed.replay))
        return answer


def _id_of(session_id: str) -> UUID:
    if session_id == CURRENT:
        return current_call().caller.session_id or _NONE
    return UUID(session_id)


def _session(shown: Shown) -> session_pb2.Session:
    listed, end = shown.listed, shown.end
    session = listed.session
    return session_pb2.Session(
        session_id=str(session.id),
        device=listed.device,
        address=listed.address or "",
        create_time=to_timestamp(session.created_at),
        last_seen_time=to_timestamp(listed.last_seen_at),
        expire_time=to_timestamp(session.expires_at),
        idle_expire_time=to_timestamp(shown.idle_end),
        amr=session.amr,
        acr=session.acr,
        current=session.id == current_call().caller.session_id,
        end_time=to_timestamp(end.at) if end else None,
        end_reason=end.reason if end else "",
    )


def _replay(replay: Replay) -> session_pb2.RefreshTokenReplay:
    return session_pb2.RefreshTokenReplay(
        counter_seen=replay.seen,
        counter_expected=replay.expected,
        address=replay.address or "",
    )
