"""DeviceService through real channels, on both transports."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from finity.auth.v1 import auth_pb2, device_pb2, device_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status

from tests.factories import connect_owner
from tests.fakes import FakeClock
from tests.running import House, Person, bearer, info_of, open_house, refusal_of

DeviceStub = device_pb2_grpc.DeviceServiceStub


@pytest.fixture
def devices(house: House) -> Any:
    return device_pb2_grpc.DeviceServiceStub(house.auth_channel)


async def refused(call: Awaitable[Any], code: StatusCode, reason: str) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    assert refusal_of(caught.value) == (code, reason)
    assert info_of(caught.value).domain in ("auth.finity", "finity")
    return caught.value


def waits(error: aio.AioRpcError) -> tuple[str, float]:
    """Returns the interval a refusal names, and the delay that any client understands."""
    status = rpc_status.from_call(error)
    retry = error_details_pb2.RetryInfo()
    assert status is not None
    assert any(
        detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) and detail.Unpack(retry)
        for detail in status.details
    )
    return info_of(error).metadata["interval"], retry.retry_delay.ToTimedelta().total_seconds()


async def start(devices: DeviceStub) -> device_pb2.StartDeviceLoginResponse:
    return await devices.StartDeviceLogin(
        device_pb2.StartDeviceLoginRequest(client_name="Chrome plugin")
    )


def poll(devices: DeviceStub, device_code: str) -> Awaitable[device_pb2.PollDeviceLoginResponse]:
    return devices.PollDeviceLogin(device_pb2.PollDeviceLoginRequest(device_code=device_code))


def approve(
    devices: DeviceStub, who: Person, user_code: str
) -> Awaitable[device_pb2.ApproveDeviceLoginResponse]:
    request = device_pb2.ApproveDeviceLoginRequest(user_code=user_code)
    return devices.ApproveDeviceLogin(request, metadata=who.metadata)


async def test_a_device_logs_in(house: House, devices: DeviceStub, clock: FakeClock) -> None:
    """The whole of RFC 8628 section 3: codes, pending, slow down, approval, session, used up."""
    ada = await house.person()
    started = await start(devices)
    assert (started.expires_in, started.interval) == (600, 5)
    assert started.verification_uri == "http://localhost:3000/device"
    assert started.verification_uri_complete == (
        f"http://localhost:3000/device?user_code={started.user_code}"
    )
    device_code = started.device_code
    early = await refused(
        poll(devices, device_code), StatusCode.FAILED_PRECONDITION, "AUTHORIZATION_PENDING"
    )
    assert waits(early) == ("5", 5.0)
    slower = await refused(poll(devices, device_code), StatusCode.RESOURCE_EXHAUSTED, "SLOW_DOWN")
    assert waits(slower) == ("10", 10.0)

    inspect = device_pb2.InspectDeviceLoginRequest(user_code=f" {started.user_code.lower()} ")
    shown = (await devices.InspectDeviceLogin(inspect, metadata=ada.metadata)).login
    asked, over = Timestamp(), Timestamp()
    asked.FromDatetime(clock.now())
    over.FromDatetime(clock.now())
    over.seconds += 600
    assert shown == device_pb2.DeviceLogin(
        client_name="Chrome plugin",
        address="127.0.0.1",
        same_address=True,
        create_time=asked,
        expire_time=over,
    )
    for _ in range(2):
        assert (await approve(devices, ada, started.user_code)).login == shown
    clock.advance(seconds=10)
    answer = await poll(devices, device_code)
    assert answer.user.user_id == ada.user_id
    me = bearer(answer.tokens.access_token)
    assert (await house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=me)).user == answer.user
    refresh = auth_pb2.RefreshSessionRequest(refresh_token=answer.tokens.refresh_token)
    refreshed = (await house.auth.RefreshSession(refresh)).tokens
    assert refreshed.session_id == answer.tokens.session_id != ada.tokens.session_id
    used = poll(devices, device_code)
    await refused(used, StatusCode.UNAUTHENTICATED, "DEVICE_CODE_INVALID")


async def test_an_old_proof_approves_nothing(
    house: House, devices: DeviceStub, clock: FakeClock
) -> None:
    """The token is good, but who it is was proved too long ago to let a device in."""
    ada = await house.person()
    clock.advance(minutes=11)
    started = await start(devices)
    late = approve(devices, ada, started.user_code)
    error = await refused(late, StatusCode.UNAUTHENTICATED, "STEP_UP_REQUIRED")
    assert dict(info_of(error).metadata) == {"acr_values": "aal1", "max_age": "600"}


async def test_a_login_is_refused_by_reason(
    house: House, devices: DeviceStub, clock: FakeClock
) -> None:
    """Denied, over and unknown are told apart; of a user code only that no device shows it."""
    ada = await house.person()
    denied, over = await start(devices), await start(devices)
    deny = device_pb2.DenyDeviceLoginRequest(user_code=denied.user_code)
    for _ in range(2):
        await devices.DenyDeviceLogin(deny, metadata=ada.metadata)
    out = poll(devices, denied.device_code)
    await refused(out, StatusCode.PERMISSION_DENIED, "DEVICE_DENIED")
    clock.advance(minutes=10)
    for device_code, reason in (
        (over.device_code, "DEVICE_CODE_EXPIRED"),
        ("x" * 43, "DEVICE_CODE_INVALID"),
    ):
        await refused(poll(devices, device_code), StatusCode.UNAUTHENTICATED, reason)
    ada = await house.person()
    answers = []
    for user_code in (denied.user_code, over.user_code, "BBBB-BBBB", "?"):
        error = await refused(
            approve(devices, ada, user_code), StatusCode.NOT_FOUND, "USER_CODE_INVALID"
        )
        status = rpc_status.from_call(error)
        assert status is not None
        answers.append(status.SerializeToString(deterministic=True))
    assert len(set(answers)) == 1


async def test_guesses_end_after_five(house: House, devices: DeviceStub) -> None:
    """The sixth code of a user is TOO_MANY_ATTEMPTS with the time to wait."""
    ada = await house.person()
    for _ in range(5):
        await refused(approve(devices, ada, "BBBB-BBBB"), StatusCode.NOT_FOUND, "USER_CODE_INVALID")
    await refused(
        approve(devices, ada, (await start(devices)).user_code),
        StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_ATTEMPTS",
    )


@pytest.mark.parametrize(
    "client_name", ["", " ", " x", "x" * 61, "a\nb", "a\x00", "a\u202eb", "a\u200b", "a\u2028b"]
)
async def test_a_name_is_what_can_be_shown(devices: DeviceStub, client_name: str) -> None:
    """A name that is empty, too long, or could deceive whoever reads it is INVALID_REQUEST."""
    request = device_pb2.StartDeviceLoginRequest(client_name=client_name)
    call = devices.StartDeviceLogin(request)
    await refused(call, StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_a_name_may_be_of_any_script(house: House, devices: DeviceStub) -> None:
    """Sixty characters of any script are a name, and the session carries it."""
    name = ("Éditeur für 漫画 \N{PILE OF POO} " * 5)[:60]
    request = device_pb2.StartDeviceLoginRequest(client_name=name)
    started = await devices.StartDeviceLogin(request)
    await approve(devices, await house.person(), started.user_code)
    session_id = (await poll(devices, started.device_code)).tokens.session_id
    async with connect_owner(house.database_url) as owner:
        stored = await owner.fetchval("SELECT device FROM sessions WHERE id = $1", session_id)
    assert stored == name


async def test_fifty_polls_open_one_session(house: House, devices: DeviceStub) -> None:
    """Over the wire, too, the code opens one session."""
    started = await start(devices)
    await approve(devices, await house.person(), started.user_code)
    answers = await asyncio.gather(
        *(poll(devices, started.device_code) for _ in range(50)), return_exceptions=True
    )
    opened = [one for one in answers if isinstance(one, device_pb2.PollDeviceLoginResponse)]
    assert len(opened) == 1
    rest = {refusal_of(one)[1] for one in answers if isinstance(one, aio.AioRpcError)}
    assert rest == {"DEVICE_CODE_INVALID"}


async def test_an_address_starts_so_many(
    database_url: str, redis_url: str, transport: str, clock: FakeClock
) -> None:
    """More waiting codes than the setting allows are refused until one is over; pages are ours."""
    settings = {"device_codes_per_address": 2, "public_url": "https://app.example.com/"}
    async with open_house(database_url, redis_url, transport, clock, **settings) as house:
        devices: Any = device_pb2_grpc.DeviceServiceStub(house.auth_channel)
        assert (await start(devices)).verification_uri == "https://app.example.com/device"
        await start(devices)
        await refused(start(devices), StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_ATTEMPTS")
        clock.advance(minutes=10)
        await start(devices)
