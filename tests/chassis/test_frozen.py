"""chassis.postgres when the server is there but not heard: nothing closes, nothing answers."""

import asyncio
from urllib.parse import urlsplit, urlunsplit

import pytest

from chassis import postgres
from chassis.postgres import open_database
from chassis.refusals import DatabaseUnavailable


class Proxy:
    """A TCP relay to the server that can stop passing bytes without closing anything."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._relays: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Returns the port it listens on."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def freeze(self) -> None:
        """From now on the connections that are open pass nothing; new ones do."""
        self._flowing.clear()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def close(self) -> None:
        """Ends what froze as well: nothing may outlive the test."""
        assert self._server is not None
        self._server.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(w.wait_closed() for w in self._writers), return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.append(task)
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers += [writer, far_writer]
        flowing = self._flowing
        await asyncio.gather(_pump(reader, far_writer, flowing), _pump(far_reader, writer, flowing))


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event
) -> None:
    while data := await reader.read(65536):
        await flowing.wait()
        writer.write(data)
    writer.close()


async def test_a_connection_that_froze_is_cut(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is not heard any more costs one bounded wait; the next use case succeeds."""
    monkeypatch.setattr(postgres, "TRANSACTION_SECONDS", 0.3)
    monkeypatch.setattr(postgres, "ROLLBACK_SECONDS", 0.1)
    parts = urlsplit(database_url)
    proxy = Proxy(parts.hostname or "", parts.port or 5432)
    login = parts.netloc.rpartition("@")[0]
    netloc = f"{login}@127.0.0.1:{await proxy.start()}"
    url = urlunsplit(parts._replace(netloc=netloc))
    async with open_database(url, role="finity_auth", application="it") as database:

        async def use_case() -> None:
            async with database.transaction() as conn:
                proxy.freeze()
                await conn.execute("SELECT 1")

        with pytest.raises(DatabaseUnavailable):
            await use_case()
        monkeypatch.undo()
        async with database.transaction() as conn:
            assert await conn.fetchval("SELECT 1") == 1
    await proxy.close()
