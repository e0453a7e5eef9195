"""QuotaService on the wire: message in, use case, message out."""

from typing import Any
from uuid import UUID

from finity.usage.v1 import quota_pb2, quota_pb2_grpc
from grpc import aio

from chassis.clock import Clock
from chassis.errors import FieldViolation
from chassis.pages import PageTokens
from chassis.refusals import InvalidRequest
from chassis.times import to_timestamp
from services.usage.domain.calendar import Window, known_zones
from services.usage.domain.metering import Outcome
from services.usage.domain.quotas import Quota, Scope
from services.usage.domain.standing import Role
from services.usage.rpc.refusals import refusal_of
from services.usage.service.quotas import QuotaService, Status
from services.usage.service.standings import StandingService

DEFAULT_PAGE = 50
Context = aio.ServicerContext[Any, Any]
_TO_WINDOW = {
    Window.MINUTE: quota_pb2.QUOTA_WINDOW_MINUTE,
    Window.DAY: quota_pb2.QUOTA_WINDOW_DAY,
    Window.MONTH: quota_pb2.QUOTA_WINDOW_MONTH,
}
_FROM_WINDOW = {number: window for window, number in _TO_WINDOW.items()}
_TO_ROLE = {
    Role.FREE: quota_pb2.ACCOUNT_ROLE_FREE,
    Role.PRO: quota_pb2.ACCOUNT_ROLE_PRO,
    Role.ADMIN: quota_pb2.ACCOUNT_ROLE_ADMIN,
}
_FROM_ROLE = {number: role for role, number in _TO_ROLE.items()}


class QuotaServicer(quota_pb2_grpc.QuotaServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(
        self, quotas: QuotaService, standings: StandingService, pages: PageTokens, clock: Clock
    ) -> None:
        self._quotas = quotas
        self._standings = standings
        self._pages = pages
        self._clock = clock

    async def SetQuota(
        self, request: quota_pb2.SetQuotaRequest, context: Context
    ) -> quota_pb2.SetQuotaResponse:
        quota = await self._quotas.set_quota(
            _scope(request),
            request.tool_name,
            _FROM_WINDOW[request.window],
            max_calls=request.max_calls if request.HasField("max_calls") else None,
            max_credits=request.max_credits if request.HasField("max_credits") else None,
        )
        return quota_pb2.SetQuotaResponse(quota=_quota(quota))

    async def DeleteQuota(
        self, request: quota_pb2.DeleteQuotaRequest, context: Context
    ) -> quota_pb2.DeleteQuotaResponse:
        window = _FROM_WINDOW[request.window]
        deleted = await self._quotas.delete_quota(_scope(request), request.tool_name, window)
        return quota_pb2.DeleteQuotaResponse(deleted=deleted)

    async def ListQuotas(
        self, request: quota_pb2.ListQuotasRequest, context: Context
    ) -> quota_pb2.ListQuotasResponse:
        scope = f"ListQuotas:{request.user_id}"
        after = tuple(self._pages.decode(request.page_token, scope)) if request.page_token else ()
        listed = await self._quotas.list_quotas(UUID(request.user_id))
        rest = [status for status in listed if status.place > after]
        size = request.page_size or DEFAULT_PAGE
        more = len(rest) > size
        token = self._pages.encode(rest[size - 1].place, scope) if more else ""
        return quota_pb2.ListQuotasResponse(
            quotas=[_status(status) for status in rest[:size]], next_page_token=token
        )

    async def CheckQuota(
        self, request: quota_pb2.CheckQuotaRequest, context: Context
    ) -> quota_pb2.CheckQuotaResponse:
        user_id = UUID(request.user_id)
        result = await self._quotas.check(user_id, request.tool_name, request.credits)
        if result.outcome is Outcome.ACCEPTED:
            return quota_pb2.CheckQuotaResponse(admitted=True, available=result.available)
        refusal = refusal_of(request.credits, result, self._clock.now())
        return quota_pb2.CheckQuotaResponse(
            reason=refusal.reason,
            message=refusal.message,
            metadata=refusal.metadata,
            available=result.available,
        )

    async def SetTimeZone(
        self, request: quota_pb2.SetTimeZoneRequest, context: Context
    ) -> quota_pb2.SetTimeZoneResponse:
        if request.time_zone not in known_zones():
            broken = FieldViolation("time_zone", "time_zone.known", "is no IANA time zone")
            raise InvalidRequest(violations=(broken,))
        time_zone = await self._standings.set_time_zone(UUID(request.user_id), request.time_zone)
        return quota_pb2.SetTimeZoneResponse(time_zone=time_zone)

    async def SetAccountRole(
        self, request: quota_pb2.SetAccountRoleRequest, context: Context
    ) -> quota_pb2.SetAccountRoleResponse:
        book = await self._standings.set_role(
            UUID(request.user_id), _FROM_ROLE[request.role], request.sequence
        )
        role = _TO_ROLE[book.standing.role]
        return quota_pb2.SetAccountRoleResponse(role=role, available=book.available)


def _scope(request: quota_pb2.SetQuotaRequest | quota_pb2.DeleteQuotaRequest) -> Scope:
    if request.WhichOneof("scope") == "role":
        return Scope(role=_FROM_ROLE[request.role])
    return Scope(user_id=UUID(request.user_id))


def _quota(quota: Quota) -> quota_pb2.Quota:
    message = quota_pb2.Quota(
        tool_name=quota.tool_name,
        window=_TO_WINDOW[quota.window],
        max_calls=quota.max_calls,
        max_credits=quota.max_credits,
        update_time=to_timestamp(quota.updated_at),
    )
    if quota.scope.role is not None:
        message.role = _TO_ROLE[quota.scope.role]
    else:
        message.user_id = str(quota.scope.user_id)
    return message


def _status(status: Status) -> quota_pb2.QuotaStatus:
    return quota_pb2.QuotaStatus(
        quota=_quota(status.quota),
        used_calls=status.counter.calls,
        used_credits=status.counter.credits,
        reset_time=to_timestamp(status.resets_at),
    )
