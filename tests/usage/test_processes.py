"""Several usage processes on one port, and several replicas, over one database."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from finity.usage.v1 import usage_pb2, usage_pb2_grpc
from grpc import aio

from chassis.postgres import Connection
from chassis.server import StartupError
from chassis.siblings import _Siblings
from services.usage.config import Settings
from suite import ports
from suite.ports import free_port
from tests.chassis.waiting import until
from tests.factories import Process, eventually, ledger_faults, make_account, start_process
from tests.fakes import FakeClock
from tests.running import SERVICE_KEY, bearer
from tests.usage.load import Load, finish

COUNTED = "grpc_server_handled_total{"
ALONE = [("grpc.use_local_subchannel_pool", 1)]
LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc, Linux only")


@contextlib.asynccontextmanager
async def running(
    database_url: str, redis_url: str, *, count: int, transport: str, metrics: int, port: int = 0
) -> AsyncIterator[Process]:
    variables = {
        "FINITY_LOG_LEVEL": "error",
        "FINITY_TRANSPORT": transport,
        "FINITY_USAGE_PROCESSES": str(count),
        "FINITY_USAGE_METRICS_PORT": str(metrics),
    }
    process = await start_process(
        "usage", database_url, redis_url, variables, port=port or free_port()
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.child.terminate()
        await process.finish()


def handled(metrics: int) -> int:
    """Returns the calls a process answered with OK."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return int(
        sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(COUNTED) and 'grpc_code="OK"' in line
        )
    )


def pair_of_metrics_ports() -> int:
    """Returns a free port whose hundredth is free too."""
    while True:
        port = free_port()
        if port + 100 < 65536 and ports.is_free(port + 100):
            return port


async def serving(process: Process, *metrics: int) -> None:
    """Returns once all listen, and on the ports of their metrics; AssertionError if they ended."""

    async def answer() -> bool:
        if process.child.returncode is not None:
            pytest.fail(f"They ended: {await process.finish()}.")
        children = ports._children(process.child.pid)
        # A process serves its metrics before its calls.
        listening = [ports.is_listening(child, process.port) for child in children]
        return all(listening) and all(ports.answers(port) for port in metrics)

    await eventually(answer, seconds=30)


async def work_on_channels(load: Load, port: int, *, channels: int, calls: int) -> None:
    """Sends over as many connections, by calls and by a stream on each."""

    async def one() -> None:
        async with aio.insecure_channel(f"127.0.0.1:{port}", options=ALONE) as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
            usage = usage_pb2_grpc.UsageServiceStub(channel)
            stream = asyncio.create_task(load.ingest(usage, 50))
            sizes = [1] * calls + [20] * (calls // 4)
            sent = [load.send(usage, size) for size in sizes]
            # What is refused because an account was held for too long stays unsure.
            await asyncio.gather(*sent, return_exceptions=True)
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)

    await asyncio.gather(*(one() for _ in range(channels)))


async def test_two_processes_share_a_port_and_metering_stays_exact(
    database_url: str, redis_url: str, transport: str, owner: Connection
) -> None:
    """Both serve calls and streams of the same users; no event is lost or counts twice."""
    users = [await make_account(owner, FakeClock(), credits=10**9) for _ in range(5)]
    load = Load(users, random.Random(5))  # noqa: S311
    metrics = pair_of_metrics_ports()
    started = running(database_url, redis_url, count=2, transport=transport, metrics=metrics)
    async with started as process:
        await serving(process, metrics, metrics + 100)
        await work_on_channels(load, process.port, channels=24, calls=40)
        assert set(load.refusals) <= {"ABORTED CONFLICT"}
        served = [await asyncio.to_thread(handled, port) for port in (metrics, metrics + 100)]
        assert min(served) > 100
        async with aio.insecure_channel(f"127.0.0.1:{process.port}") as channel:
            await finish(owner, load, usage_pb2_grpc.UsageServiceStub(channel), 20)


async def test_replicas_on_ports_of_their_own_meter_the_same_accounts(
    database_url: str, redis_url: str, owner: Connection
) -> None:
    """Three processes on three ports, one event sent to all of them: it is spent once."""
    users = [await make_account(owner, FakeClock(), credits=10**9) for _ in range(5)]
    load = Load(users, random.Random(6))  # noqa: S311
    async with contextlib.AsyncExitStack() as stack:
        stubs = []
        for _ in range(3):
            process = await stack.enter_async_context(
                running(database_url, redis_url, count=1, transport="native", metrics=0)
            )
            channel = await stack.enter_async_context(
                aio.insecure_channel(f"127.0.0.1:{process.port}")
            )
            stubs.append(usage_pb2_grpc.UsageServiceStub(channel))
            await asyncio.wait_for(channel.channel_ready(), 30)
        for _ in range(20):
            events = load.next(30)
            request = usage_pb2.RecordUsageBatchRequest(events=events)
            answers = await asyncio.gather(
                *(usage.RecordUsageBatch(request, metadata=bearer(SERVICE_KEY)) for usage in stubs)
            )
            outcomes = [[result.outcome for result in answer.results] for answer in answers]
            for each in zip(*outcomes, strict=True):
                assert sorted(each) == [1, 2, 2]
            load.acknowledged.update(event.event_id for event in events)
        await finish(owner, load, stubs[0])


@LINUX
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_siblings_end_as_one(database_url: str, redis_url: str, how: signal.Signals) -> None:
    """When one of them or the first process ends, all do, and the port is free."""
    metrics = pair_of_metrics_ports()
    started = running(database_url, redis_url, count=2, transport="native", metrics=metrics)
    async with started as process:
        await serving(process, metrics, metrics + 100)
        children = ports._children(process.child.pid)
        assert len(children) == 2
        os.kill(children[0], how)
        code, _ = await asyncio.wait_for(process.finish(), 20)
        assert code != 0
        await until(lambda: ports.is_free(process.port))


async def test_siblings_take_a_port_that_was_just_left(database_url: str, redis_url: str) -> None:
    """A connection that the last server ended lingers in TIME-WAIT; a restart does not mind."""
    with socket.create_server(("127.0.0.1", free_port())) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()
            assert client.recv(1) == b""
    metrics = pair_of_metrics_ports()
    started = running(
        database_url, redis_url, count=2, transport="native", metrics=metrics, port=port
    )
    async with started as process:
        await serving(process, metrics, metrics + 100)


@LINUX
def test_a_port_is_held_before_anybody_listens() -> None:
    """Whoever else wants it while the processes are started is refused, and they are not."""
    settings = Settings.model_construct(host="127.0.0.1", port=free_port())
    siblings = _Siblings(settings, "usage", 2)
    with siblings._held() as held, socket.socket() as sibling:
        assert not ports.is_free(settings.port)
        with pytest.raises(StartupError, match="FINITY_USAGE_PORT"):
            siblings._held()
        sibling.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sibling.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sibling.bind(held.getsockname())
        sibling.listen()


@LINUX
async def test_siblings_end_with_the_first_process(database_url: str, redis_url: str) -> None:
    """A first process that is killed leaves nobody behind on the port."""
    metrics = pair_of_metrics_ports()
    started = running(database_url, redis_url, count=2, transport="native", metrics=metrics)
    async with started as process:
        await serving(process, metrics, metrics + 100)
        process.child.kill()

        async def free() -> bool:
            return ports.is_free(process.port)

        await eventually(free, seconds=20)


async def test_siblings_do_not_share_with_strangers(
    database_url: str, redis_url: str, owner: Connection
) -> None:
    """A port that another service serves, even one that shares it, is refused in a sentence."""
    metrics = pair_of_metrics_ports()
    started = running(database_url, redis_url, count=2, transport="native", metrics=metrics)
    async with started as process:
        await serving(process, metrics)
        for count in ("1", "2"):
            second = await start_process(
                "usage",
                database_url,
                redis_url,
                {"FINITY_USAGE_PROCESSES": count},
                port=process.port,
            )
            code, stderr = await asyncio.wait_for(second.finish(), 30)
            assert code == 1
            assert "FINITY_USAGE_PORT" in stderr
        assert await ledger_faults(owner) == []
