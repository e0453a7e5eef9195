"""The usage service as a whole process: start-up sentences."""

import re
import socket

import pytest

from suite.ports import free_port
from tests.factories import start_process

# The transport itself may report a failed bind before it raises.
LOGGED = re.compile(r"[EWI]\d{4} |\d{4}-\d\d-\d\dT")


async def sentence(database_url: str, redis_url: str, **variables: str) -> str:
    """Starts the service, which must not start; returns the one line it wrote."""
    process = await start_process("usage", database_url, redis_url, variables)
    code, stderr = await process.finish()
    lines = [line for line in stderr.splitlines() if not LOGGED.match(line)]
    assert (code, len(lines)) == (1, 1), stderr
    return lines[0]


async def test_an_unreachable_database_is_a_sentence(redis_url: str) -> None:
    """The sentence names DATABASE_URL and the place, and not the password."""
    url = f"postgresql://finity:hushhush@127.0.0.1:{free_port()}/finity_db"
    line = await sentence(url, redis_url)
    assert "DATABASE_URL" in line
    assert "hushhush" not in line


async def test_a_database_that_was_never_migrated_is_a_sentence(
    empty_database_url: str, redis_url: str
) -> None:
    """A database behind its migrations is refused with what to run."""
    assert "finity migrate" in await sentence(empty_database_url, redis_url)


async def test_a_taken_port_is_a_sentence(database_url: str, redis_url: str) -> None:
    """A port somebody listens on is named together with the variable to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = await sentence(database_url, redis_url, FINITY_USAGE_PORT=str(port))
    assert f":{port} " in line
    assert "FINITY_USAGE_PORT" in line


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"DATABASE_URL": "mysql://finity@localhost/finity_db"}, "DATABASE_URL"),
        ({"FINITY_FLUSH_EVENTS": "0"}, "FINITY_FLUSH_EVENTS"),
        ({"FINITY_ENV": "production"}, "FINITY_SECRET"),
    ],
)
async def test_a_wrong_setting_is_a_sentence(
    database_url: str, redis_url: str, variables: dict[str, str], named: str
) -> None:
    """A setting that makes no sense is one line that names it."""
    assert named in await sentence(database_url, redis_url, **variables)
