"""examples/ingest_client.py against a server that is killed while it sends."""

import asyncio
import os
import random
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE

import pytest

from chassis.postgres import Connection
from suite.ports import free_port
from tests.factories import ROOT, Process, eventually, ledger_faults, make_account, start_process
from tests.fakes import FakeClock
from tests.running import SERVICE_KEY

SAID = re.compile(r"acknowledged over (\d+) streams: (\d+) accepted, (\d+) duplicate\n")

ENDED = (
    "SELECT NOT EXISTS (SELECT FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'finity usage')"
)


async def client(port: int, user_id: object, count: int) -> asyncio.subprocess.Process:
    environment = os.environ | {
        "FINITY_USAGE_ADDRESS": f"127.0.0.1:{port}",
        "FINITY_SERVICE_KEY": SERVICE_KEY,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "gen")]),
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "examples/ingest_client.py", str(user_id), str(count)),
        cwd=ROOT,
        env=environment,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.soak)])
async def test_a_client_that_resumes_records_every_event_once(
    database_url: str, redis_url: str, transport: str, owner: Connection, kills: int
) -> None:
    """The server is killed in the middle of the stream, again and again: each event stays, once."""
    count = 10_000 * kills
    dice = random.Random(count)  # noqa: S311
    user_id = await make_account(owner, FakeClock(), credits=10**9)
    port = free_port()

    async def start() -> Process:
        variables = {"FINITY_LOG_LEVEL": "error", "FINITY_TRANSPORT": transport}
        return await start_process("usage", database_url, redis_url, variables, port=port)

    async def recorded() -> int:
        return int(await owner.fetchval("SELECT count(*) FROM tool_usage"))

    process = await start()
    sender = await client(port, user_id, count)
    try:
        for kill in range(kills):
            # Never before the stream that this kill is to end has recorded something, nor so late
            # that the client is done before it is noticed.
            due = max((kill + dice.random()) * count / (2 * kills), await recorded() + 1)

            async def far_enough(due: float = due) -> bool:
                assert sender.returncode is None
                return await recorded() >= due

            await eventually(far_enough)
            await process.kill()
            process = await start()
        stdout, stderr = await asyncio.wait_for(sender.communicate(), 120)
    finally:
        if sender.returncode is None:
            sender.kill()
        await process.kill()
    said = SAID.fullmatch(stdout.decode())
    assert said, (stdout, stderr)
    streams, accepted, duplicates = map(int, said.groups())
    assert streams > kills
    assert accepted + duplicates == count
    assert await recorded() == count
    assert await owner.fetchval("SELECT used FROM credit_accounts") == count
    assert await ledger_faults(owner) == []
