"""DeviceService on the wire: message in, use case, message out."""

from finity.auth.v1 import device_pb2, device_pb2_grpc

from chassis.calls import current_call
from chassis.times import to_timestamp
from services.auth.domain.devices import LIFETIME, DeviceLogin
from services.auth.rpc.messages import Context, to_tokens, to_user
from services.auth.service.devices import DeviceService


class DeviceServicer(device_pb2_grpc.DeviceServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(self, devices: DeviceService) -> None:
        self._devices = devices

    async def StartDeviceLogin(
        self, request: device_pb2.StartDeviceLoginRequest, context: Context
    ) -> device_pb2.StartDeviceLoginResponse:
        started = await self._devices.start(
            client_name=request.client_name, address=current_call().address()
        )
        return device_pb2.StartDeviceLoginResponse(
            device_code=started.device_code,
            user_code=started.user_code,
            verification_uri=started.verification_uri,
            verification_uri_complete=f"{started.verification_uri}?user_code={started.user_code}",
            expires_in=int(LIFETIME.total_seconds()),
            interval=started.login.interval_seconds,
        )

    async def PollDeviceLogin(
        self, request: device_pb2.PollDeviceLoginRequest, context: Context
    ) -> device_pb2.PollDeviceLoginResponse:
        tokens, user = await self._devices.poll(
            request.device_code, address=current_call().address()
        )
        return device_pb2.PollDeviceLoginResponse(tokens=to_tokens(tokens), user=to_user(user))

    async def InspectDeviceLogin(
        self, request: device_pb2.InspectDeviceLoginRequest, context: Context
    ) -> device_pb2.InspectDeviceLoginResponse:
        call = current_call()
        login = await self._devices.inspect(
            caller=call.caller, user_code=request.user_code, address=call.address()
        )
        return device_pb2.InspectDeviceLoginResponse(login=_to_login(login))

    async def ApproveDeviceLogin(
        self, request: device_pb2.ApproveDeviceLoginRequest, context: Context
    ) -> device_pb2.ApproveDeviceLoginResponse:
        call = current_call()
        login = await self._devices.approve(
            caller=call.caller, user_code=request.user_code, address=call.address()
        )
        return device_pb2.ApproveDeviceLoginResponse(login=_to_login(login))

    async def DenyDeviceLogin(
        self, request: device_pb2.DenyDeviceLoginRequest, context: Context
    ) -> device_pb2.DenyDeviceLoginResponse:
        call = current_call()
        await self._devices.deny(
            caller=call.caller, user_code=request.user_code, address=call.address()
        )
        return device_pb2.DenyDeviceLoginResponse()


def _to_login(login: DeviceLogin) -> device_pb2.DeviceLogin:
    return device_pb2.DeviceLogin(
        client_name=login.client_name,
        address=login.address,
        same_address=bool(login.address) and login.address == current_call().address(),
        create_time=to_timestamp(login.created_at),
        expire_time=to_timestamp(login.expires_at),
    )
