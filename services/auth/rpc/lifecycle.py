"""AccountLifecycleService on the wire: message in, use case, message out."""

from uuid import UUID

from finity.auth.v1 import account_pb2, account_pb2_grpc

from chassis.calls import current_call
from services.auth.rpc.messages import Context, to_user
from services.auth.service.lifecycle import LifecycleService


class LifecycleServicer(account_pb2_grpc.AccountLifecycleServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(self, lifecycle: LifecycleService) -> None:
        self._lifecycle = lifecycle

    async def DeleteAccount(
        self, request: account_pb2.DeleteAccountRequest, context: Context
    ) -> account_pb2.DeleteAccountResponse:
        user = await self._lifecycle.request_deletion(caller=current_call().caller)
        return account_pb2.DeleteAccountResponse(user=to_user(user))

    async def CancelDeletion(
        self, request: account_pb2.CancelDeletionRequest, context: Context
    ) -> account_pb2.CancelDeletionResponse:
        user = await self._lifecycle.cancel_deletion(caller=current_call().caller)
        return account_pb2.CancelDeletionResponse(user=to_user(user))

    async def ExportMyData(
        self, request: account_pb2.ExportMyDataRequest, context: Context
    ) -> account_pb2.ExportMyDataResponse:
        export = await self._lifecycle.export(UUID(request.user_id), caller=current_call().caller)
        response = account_pb2.ExportMyDataResponse(filename=export.filename)
        response.data.update(export.data)
        return response
