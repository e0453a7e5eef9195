"""chassis.server: start, health, reflection and drain, on both transports."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx
import pytest
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chassis import background as jobs
from chassis import health, server
from chassis.background import background
from chassis.contract import ContractError
from chassis.dsn import DatabaseError
from chassis.server import StartupError
from chassis.settings import SettingsError
from suite.ports import free_port
from tests.chassis import contracts, probe
from tests.chassis.contracts import Rpc
from tests.chassis.probe import CONTRACT, Answer, Probe
from tests.chassis.waiting import until
from tests.running import refusal_of

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PRODUCTION = {
    "env": "production",
    "secret": "s" * 32,
    "database_url": "postgresql://u:a-real-one@h/d",
    "redis_url": "rediss://h",
}


@pytest.fixture
async def room(transport: str) -> AsyncIterator[Probe]:
    async with probe.serve(transport=transport) as running:
        yield running


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield int(holder.getsockname()[1])


async def test_a_taken_port_is_a_sentence(transport: str, taken_port: int) -> None:
    """A port somebody has stops the start with the setting to change."""
    async with probe.composed(transport=transport, port=taken_port) as room:
        with pytest.raises(StartupError) as refused:
            await room.server.start()
    assert str(refused.value) == (
        f"127.0.0.1:{taken_port} is taken; set FINITY_PROBE_PORT to a free port."
    )


async def test_two_services_never_share_a_port(room: Probe, transport: str) -> None:
    """A second service on a served port is refused, not given half of the calls."""
    async with probe.composed(transport=transport, port=room.server.port) as second:
        with pytest.raises(StartupError, match="FINITY_PROBE_PORT"):
            await second.server.start()


async def test_a_taken_metrics_port_is_a_sentence(transport: str, taken_port: int) -> None:
    """The same holds for the metrics port."""
    async with probe.composed(transport=transport, metrics_port=taken_port) as room:
        with pytest.raises(StartupError, match="FINITY_PROBE_METRICS_PORT"):
            await room.server.serve()


async def test_an_incomplete_contract_stops_the_start() -> None:
    """A server is not even made for a service with a method nobody gave an access rule."""
    service = contracts.build([], [Rpc("Forgotten")])
    with pytest.raises(ContractError, match="has no access rule"):
        server.Server(probe.settings_of(), "probe", None, [service])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", CONTRACT.full_name])
async def test_health_check_and_watch_say_serving(room: Probe, name: str) -> None:
    """Check and Watch answer SERVING for the server and each service, without credentials."""
    stub = health_pb2_grpc.HealthStub(room.channel)
    request = health_pb2.HealthCheckRequest(service=name)
    assert (await stub.Check(request)).status == SERVING
    watch = stub.Watch(request)
    assert (await watch.read()).status == SERVING
    watch.cancel()
    assert await asyncio.to_thread(health.is_serving, room.address)


async def test_the_health_of_a_stranger_is_unknown(room: Probe) -> None:
    """Check of a service that is not here is NOT_FOUND, as health v1 has it."""
    stub = health_pb2_grpc.HealthStub(room.channel)
    with pytest.raises(aio.AioRpcError) as refused:
        await stub.Check(health_pb2.HealthCheckRequest(service="finity.other.v1.OtherService"))
    assert refused.value.code().name == "NOT_FOUND"


def test_nobody_there_is_not_serving() -> None:
    """The health command ends with a sentence when nothing serves."""
    address = f"127.0.0.1:{free_port()}"
    assert not health.is_serving(address)
    with pytest.raises(SystemExit, match=f"Nothing serves on {address}"):
        health.main([address])


def reflected(address: str) -> list[str]:
    """Asks by reflection what a server serves."""
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = next(stub.ServerReflectionInfo(iter([ask])))
    return sorted(service.name for service in answer.list_services_response.service)


async def services_of(room: Probe) -> list[str]:
    """
    Asks as a client that blocks.

    One of asyncio's that still writes when it is refused may say INTERNAL (grpc issue 36066).
    """
    return await asyncio.to_thread(reflected, room.address)


async def test_reflection_lists_services_in_development(room: Probe) -> None:
    """In development grpcurl finds the services, health and reflection themselves."""
    assert await services_of(room) == [
        CONTRACT.full_name,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


@pytest.mark.parametrize("closed", [PRODUCTION, {"reflection": False}], ids=["production", "off"])
async def test_reflection_is_absent_in_production(transport: str, closed: dict[str, Any]) -> None:
    """In production, or switched off, reflection is a method nobody has; the service serves."""
    async with probe.serve(transport=transport, **closed) as room:
        with pytest.raises(grpc.RpcError) as refused:
            await services_of(room)
        assert refused.value.code().name == "UNIMPLEMENTED"
        await room.call("Open")


async def test_a_drain_lets_running_calls_finish(transport: str) -> None:
    """After SIGTERM health is NOT_SERVING, a running call gets its answer, then the server ends."""
    port, metrics_port = free_port(), free_port()
    overrides = {"transport": transport, "port": port, "metrics_port": metrics_port}
    started, go = asyncio.Event(), asyncio.Event()

    async def slow(request: Any, context: Any) -> Any:
        started.set()
        await go.wait()
        return Answer(text="finished")

    async with probe.composed(slow, drain_seconds=60, **overrides) as room:
        serving = asyncio.create_task(room.server.serve())
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            states = [(await watch.read()).status]
            while states[-1] != SERVING:
                states.append((await watch.read()).status)
            async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
                metrics = await http.get(f"http://127.0.0.1:{metrics_port}/metrics")
            assert "grpc_server_handled_total" in metrics.text
            running = asyncio.ensure_future(_answer(room, channel))
            await started.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()
            assert not serving.done()
            go.set()
            assert (await running).text == "finished"
            await asyncio.wait_for(serving, 60)
        assert not await asyncio.to_thread(health.is_serving, f"127.0.0.1:{port}")


@pytest.mark.parametrize("_", range(4))
async def test_a_drain_loses_no_answer(
    transport: str, _: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that end together during a drain all get their answers, over whichever connection."""
    assert server._WRITTEN_SECONDS >= 0.1
    # What such a moment is on a busy machine.
    monkeypatch.setattr("chassis.server._WRITTEN_SECONDS", 1.0)
    waiting, go = 0, asyncio.Event()

    async def slow(request: Any, context: Any) -> Any:
        nonlocal waiting
        waiting += 1
        await go.wait()
        return Answer(text="finished")

    async with probe.composed(slow, transport=transport, drain_seconds=60) as room:
        serving = asyncio.create_task(room.server.serve())
        await until(lambda: room.server.port > 0)
        channels = [
            aio.insecure_channel(room.address, [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(8)
        ]
        calls = [_answer(room, channel, wait_for_ready=True) for channel in channels * 8]
        answers = asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: waiting == len(calls))
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)
        go.set()
        lost = [answer for answer in await answers if isinstance(answer, BaseException)]
        await asyncio.wait_for(serving, 60)
        await asyncio.gather(*(channel.close() for channel in channels))
    assert lost == []


async def test_a_drain_takes_no_new_call(transport: str) -> None:
    """While a call gets to finish, another one is told to go elsewhere."""
    started, draining, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(request: Any, context: Any) -> Any:
        started.set()
        await go.wait()
        return Answer(text="finished")

    async with probe.composed(slow, transport=transport, drain_seconds=60) as room:
        room.server.on_drain.append(draining.set)
        serving = asyncio.create_task(room.server.serve())
        await until(lambda: room.server.port > 0)
        async with aio.insecure_channel(room.address) as channel:
            running = asyncio.ensure_future(_answer(room, channel, wait_for_ready=True))
            await started.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            await draining.wait()
            with pytest.raises(aio.AioRpcError) as refused:
                await asyncio.wait_for(_answer(room, channel), 60)
            if transport == "native":  # The other one may end the connection first.
                assert refusal_of(refused.value) == (StatusCode.UNAVAILABLE, "STOPPING")
            go.set()
            assert (await running).text == "finished"
            await asyncio.wait_for(serving, 60)


async def test_a_drain_does_not_wait_for_ever(transport: str) -> None:
    """A call that never ends is cut when the time to drain is over."""
    started = asyncio.Event()

    async def endless(request: Any, context: Any) -> Any:
        started.set()
        await asyncio.Event().wait()

    async with probe.composed(endless, transport=transport, drain_seconds=0.1) as room:
        serving = asyncio.create_task(room.server.serve())
        await until(lambda: room.server.port > 0)
        async with aio.insecure_channel(room.address) as channel:
            running = asyncio.ensure_future(_answer(room, channel, wait_for_ready=True))
            await started.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(serving, 60)
            with pytest.raises(aio.AioRpcError):
                await running


async def _answer(room: Probe, channel: aio.Channel, *, wait_for_ready: bool = False) -> Any:
    call: Any = channel.unary_unary(probe.path("Open"), response_deserializer=Answer.FromString)
    return await call(b"", wait_for_ready=wait_for_ready)


@pytest.mark.parametrize("kind", [SettingsError, StartupError, ContractError, DatabaseError])
def test_a_reason_not_to_start_is_one_sentence(kind: type[Exception]) -> None:
    """Whatever keeps a service from starting is printed alone, and the exit code is not 0."""

    async def main() -> None:
        raise kind("FINITY_X is wrong.")

    with pytest.raises(SystemExit) as ended:
        server.run(main)
    assert ended.value.code == "FINITY_X is wrong."


async def test_jobs_end_with_the_body() -> None:
    """Jobs run beside the body and are cancelled at its end."""
    ended: list[int] = []

    async def job(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    async with background(lambda: job(1), lambda: job(2)):
        await asyncio.sleep(0)
        assert ended == []
    assert sorted(ended) == [1, 2]


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "returns"])
async def test_a_background_job_that_ends_starts_again(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that fails, or just returns, is started again and takes nobody else down."""
    monkeypatch.setattr(jobs, "RESTART_SECONDS", 0.001)
    starts = others = 0

    async def job() -> None:
        nonlocal starts
        starts += 1
        if fails:
            raise ZeroDivisionError

    async def other() -> None:
        nonlocal others
        others += 1
        await asyncio.Event().wait()

    async with background(job, other):
        await until(lambda: starts >= 3)
    assert others == 1
