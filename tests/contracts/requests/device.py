"""Requests of DeviceService."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from finity.auth.v1 import device_pb2, device_pb2_grpc
from google.protobuf.message import Message

from tests.contracts.requests.given import Given


async def _started(given: Given) -> device_pb2.StartDeviceLoginResponse:
    devices = device_pb2_grpc.DeviceServiceStub(given.house.auth_channel)
    return await devices.StartDeviceLogin(_start(given))


def _start(_: Given) -> device_pb2.StartDeviceLoginRequest:
    return device_pb2.StartDeviceLoginRequest(client_name="Contract")


async def _poll(given: Given) -> Message:
    """A poll of a login that somebody has approved."""
    started = await _started(given)
    approve = device_pb2.ApproveDeviceLoginRequest(user_code=started.user_code)
    person = await given.house.person()
    devices = device_pb2_grpc.DeviceServiceStub(given.house.auth_channel)
    # From an address of its own: wrong codes that others tried do not hold it off.
    elsewhere = ("x-forwarded-for", f"2001:db8::{secrets.token_hex(2)}")
    await devices.ApproveDeviceLogin(approve, metadata=(*person.metadata, elsewhere))
    return device_pb2.PollDeviceLoginRequest(device_code=started.device_code)


async def _inspect(given: Given) -> Message:
    user_code = (await _started(given)).user_code
    return device_pb2.InspectDeviceLoginRequest(user_code=user_code)


async def _approve(given: Given) -> Message:
    user_code = (await _started(given)).user_code
    return device_pb2.ApproveDeviceLoginRequest(user_code=user_code)


async def _deny(given: Given) -> Message:
    user_code = (await _started(given)).user_code
    return device_pb2.DenyDeviceLoginRequest(user_code=user_code)


FACTORIES: dict[Any, Callable[[Given], Message | Awaitable[Message]]] = {
    device_pb2.StartDeviceLoginRequest: _start,
    device_pb2.PollDeviceLoginRequest: _poll,
    device_pb2.InspectDeviceLoginRequest: _inspect,
    device_pb2.ApproveDeviceLoginRequest: _approve,
    device_pb2.DenyDeviceLoginRequest: _deny,
}
