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
        try:
            start = device_pb2.StartDeviceLoginRequest(client_name=name)
            started = await devices.StartDeviceLogin(start, timeout=DEADLINE_SECONDS)
            say(f"Open {started.verification_uri} and type {started.user_code}")
            answer = await wait(devices, started)
        except aio.AioRpcError as error:
            sys.exit(f"refused: {error.code().name} {info_of(error).reason}")
    # A real plugin keeps answer.tokens.refresh_token where only it can read it.
    say(f"logged in as {answer.user.email} in session {answer.tokens.session_id}")


async def wait(
    devices: device_pb2_grpc.DeviceServiceAsyncStub, started: device_pb2.StartDeviceLoginResponse
) -> device_pb2.PollDeviceLoginResponse:
    """Polls at the interval the service asks for until the user has answered."""
    poll, interval = device_pb2.PollDeviceLoginRequest(device_code=started.device_code), 0
    while True:
        await asyncio.sleep(interval or started.interval)
        try:
            return await devices.PollDeviceLogin(poll, timeout=DEADLINE_SECONDS)
        except aio.AioRpcError as error:
            info = info_of(error)
            if info.reason not in WAITING:
                raise
            interval = int(info.metadata["interval"])


def info_of(error: aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """Returns the reason of a refusal and its metadata; empty if the service did not answer."""
    info, status = error_details_pb2.ErrorInfo(), rpc_status.from_call(error)  # pyright: ignore[reportArgumentType] - has all it reads
    any(detail.Unpack(info) for detail in (status.details if status else ()))
    return info


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "Example plugin"))
