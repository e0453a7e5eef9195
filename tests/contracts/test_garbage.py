"""Whatever bytes come in: typed refusals only, a living process, and no memory lost."""

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finity.auth.v1 import auth_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode, aio

from chassis.clock import SystemClock
from chassis.contract import Method
from tests.contracts.descriptors import ROOMS, methods
from tests.contracts.first_answer import first_answer
from tests.contracts.garbage import garbage
from tests.contracts.processes import Processes, open_processes
from tests.contracts.requests import request_for
from tests.contracts.requests.given import Given
from tests.running import PASSWORD, Metadata

FEW, MANY = int(os.environ.get("FINITY_GARBAGE_CALLS", "500")), 10_000
WARM_UP = 500
AT_ONCE = 64
GROWTH = 50 * 1024 * 1024
SEED = 20260101
OURS = {"finity", *(f"{room}.finity" for room in ROOMS)}
Send = Callable[[bytes, Metadata], Awaitable[None]]
NEVER = {StatusCode.INTERNAL, StatusCode.UNKNOWN}


@pytest.fixture
async def processes(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Processes]:
    """Auth and usage as processes on the native transport."""
    async with open_processes(database_url, redis_url, tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param(FEW, marks=pytest.mark.timeout(900)),
        pytest.param(MANY, marks=pytest.mark.soak),
    ],
)
async def test_garbage_is_refused_with_a_reason(processes: Processes, calls: int) -> None:
    """Random bytes and spoiled messages at each RPC get typed refusals and cost no memory."""
    for room in ROOMS:
        for method in methods(room):
            await shower(processes, room, method, WARM_UP)
    before = {room: processes.resident_bytes(room) for room in ROOMS}
    strange: dict[str, list[str]] = {}
    for room in ROOMS:
        for method in methods(room):
            found = await shower(processes, room, method, calls)
            if found:
                strange[method.path] = found[:5]
    assert strange == {}
    for room in ROOMS:
        assert processes.alive(room)
        assert processes.resident_bytes(room) - before[room] < GROWTH
        assert processes.logs[room].read_text() == ""


async def shower(processes: Processes, room: str, method: Method, calls: int) -> list[str]:
    """Sends garbage to one method; returns what came back that never should."""
    house = processes.house
    somebody = await house.person()
    admin = await house.person(role=auth_pb2.ROLE_ADMIN)
    dice = random.Random(f"{SEED}{method.path}{calls}")  # noqa: S311 - seeded on purpose
    given = Given(house, SystemClock(), somebody, somebody.user_id)
    valid = await request_for(method, given)

    def copy() -> Any:
        fresh = method.request()
        fresh.CopyFrom(valid)
        return fresh

    callers: list[Metadata] = [house.service, admin.metadata, ()]
    payloads = itertools.islice(garbage(dice, copy), calls)
    # Payloads come in threes: in step with them a caller would see one kind only.
    work = ((payload, dice.choice(callers)) for payload in payloads)
    judge = Judge()
    channel = processes.channels[room]

    async def send(payload: bytes, metadata: Metadata) -> None:
        await first_answer(channel, method, payload, metadata, seconds=30)

    await asyncio.gather(*(_worker(send, work, judge) for _ in range(AT_ONCE)))
    assert judge.answers.total() == calls
    return judge.strange


async def _worker(send: Send, work: Iterator[tuple[bytes, Metadata]], judge: "Judge") -> None:
    for payload, metadata in work:
        try:
            await send(payload, metadata)
            judge.answers[StatusCode.OK] += 1
        except aio.AioRpcError as error:
            judge.read(error, payload)


class Judge:
    """Reads refusals; the same details are decoded once."""

    def __init__(self) -> None:
        self.answers: Counter[StatusCode] = Counter()
        self.strange: list[str] = []
        self._typed: set[tuple[StatusCode, bytes]] = set()

    def read(self, error: aio.AioRpcError, payload: bytes) -> None:
        code = error.code()
        self.answers[code] += 1
        details = b""
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin" and isinstance(value, bytes):
                details = value
        if (code, details) in self._typed:
            return
        if code in NEVER or not _explained(code, details):
            self.strange.append(f"{code.name} {error.details()} for {payload!r}")
        else:
            self._typed.add((code, details))


def _explained(code: StatusCode, details: bytes) -> bool:
    status = status_pb2.Status.FromString(details)
    info = error_details_pb2.ErrorInfo()
    typed = any(detail.Unpack(info) for detail in status.details)
    return typed and status.code == code.value[0] and info.domain in OURS and bool(info.reason)


def test_the_garbage_is_not_only_noise() -> None:
    """Control: some of what is sent is valid enough to get past the decoder, some is not."""
    (register,) = [method for method in methods("auth") if method.name == "Register"]
    valid = auth_pb2.RegisterRequest(email="ada@example.com", password=PASSWORD)

    def copy() -> Any:
        return auth_pb2.RegisterRequest.FromString(valid.SerializeToString())

    decoded = 0
    for payload in itertools.islice(garbage(random.Random(1), copy), 600):  # noqa: S311
        try:
            register.parse(payload)
            decoded += 1
        except Exception as error:  # noqa: BLE001 - told apart by its name below
            assert type(error).__name__ == "MalformedMessage"  # noqa: PT017
    assert 200 < decoded < 590
