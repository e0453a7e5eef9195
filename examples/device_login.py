"""
A plugin without a browser logs in: it shows a code and waits until its user approves (RFC 8628).

    python examples/device_login.py [NAME]
"""

import asyncio
import os
import sys

from finity.auth.v1 import device_pb2, device_pb2_grpc
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status

ADDRESS = os.environ.get("FINITY_AUTH_ADDRESS", "127.0.0.1:50051")
DEADLINE_SECONDS = 5.0
WAITING = {"AUTHORIZATION_PENDING", "SLOW_DOWN"}


async def main(name: str) -> None:
    async with aio.insecure_channel(ADDRESS) as channel:
        devices = device_pb2_grpc.DeviceServiceStub(channel)
        start = device_pb2.StartDeviceLoginRequest(client_name=name)
        try:
            started = await devices.StartDeviceLogin(start, timeout=DEADLINE_SECONDS)
            code = f"{started.verification_uri} and type {started.user_code}"
            print(f"open {code}", flush=True)  # noqa: T201
            answer = await wait(devices, started.device_code, started.interval)
        except aio.AioRpcError as error:
            sys.exit(f"refused: {error.code().name} {info_of(error).reason}")
    # A real plugin keeps answer.tokens.refresh_token where only it can read it.
    print(f"logged in as {answer.user.email} in session {answer.tokens.session_id}")  # noqa: T201


async def wait(
    devices: device_pb2_grpc.DeviceServiceStub, device_code: str, interval: int
) -> device_pb2.PollDeviceLoginResponse:
    """Polls as often as the service asks for until the user has answered."""
    while True:
        await asyncio.sleep(interval)
        poll = device_pb2.PollDeviceLoginRequest(device_code=device_code)
        try:
            return await devices.PollDeviceLogin(poll, timeout=DEADLINE_SECONDS)
        except aio.AioRpcError as error:
            if (info := info_of(error)).reason not in WAITING:
                raise
            interval = int(info.metadata["interval"])


def info_of(error: aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """Returns the reason of a refusal and its metadata; empty if the service did not answer."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType] - has all it reads
    any(detail.Unpack(info) for detail in (status.details if status else ()))
    return info


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "Example plugin"))
