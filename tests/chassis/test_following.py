"""chassis.revocations: a verifier follows auth's stream, and polls whenever there is none."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime
from uuid import uuid4

import pytest

from chassis import revocations
from chassis.refusals import PeerUnavailable
from chassis.revocations import Revocations, StreamingSource
from chassis.tokens import TokenVerifier
from tests.chassis.issuer import NAME, Issuer
from tests.chassis.waiting import until
from tests.fakes import FakeClock

NEVER = 3600.0


class Streamer(Issuer):
    """An authority that streams what a test puts; None ends a stream, a refusal breaks it."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.stream: asyncio.Queue[Revocations | Exception | None] = asyncio.Queue()
        self.opened: list[datetime | None] = []
        self.closed = 0

    async def watch(self, since: datetime | None) -> AsyncGenerator[Revocations, None]:
        self.opened.append(since)
        try:
            while (message := await self.stream.get()) is not None:
                if isinstance(message, Exception):
                    raise message
                yield message
        finally:
            self.closed += 1


@pytest.fixture
def streamer(clock: FakeClock) -> Streamer:
    return Streamer(clock)


@pytest.fixture
async def verifier(
    streamer: Streamer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TokenVerifier]:
    """A verifier that follows, and polls only when it must."""
    monkeypatch.setattr(revocations, "POLL_SECONDS", NEVER)
    monkeypatch.setattr(revocations, "PAUSE_SECONDS", 0.01)
    made = TokenVerifier(streamer, NAME, clock)
    job = asyncio.create_task(made.run(None))
    await until(lambda: bool(streamer.opened))
    yield made
    job.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await job


def refuses(verifier: TokenVerifier, session_id: object) -> bool:
    return verifier._revocations.holds(session_id, None, 0)  # type: ignore[arg-type]


def test_only_a_source_that_streams_is_one(clock: FakeClock) -> None:
    """The chassis asks the source what it can."""
    assert isinstance(Streamer(clock), StreamingSource)
    assert not isinstance(Issuer(clock), StreamingSource)


async def test_a_stream_is_followed(streamer: Streamer, verifier: TokenVerifier) -> None:
    """What is streamed is refused at once; after the first poll nothing is polled."""
    session_id = uuid4()
    token = streamer.token_of(uuid4(), session_id)
    await verifier.verify(token)
    streamer.stream.put_nowait(Revocations([session_id], []))
    await until(lambda: refuses(verifier, session_id))
    assert streamer.polls == 1


async def test_an_ended_stream_is_opened_again_from_its_cursor(
    streamer: Streamer, verifier: TokenVerifier, clock: FakeClock
) -> None:
    """A replica that stops costs a poll and a new stream, which goes on where the old one was."""
    cursor = clock.now()
    streamer.stream.put_nowait(Revocations([], [], cursor))
    streamer.stream.put_nowait(None)
    await until(lambda: len(streamer.opened) == 2)
    assert streamer.opened == [None, cursor]
    assert streamer.polls == 2
    assert streamer.closed == 1


async def test_a_silent_stream_is_given_up(
    streamer: Streamer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that says nothing, not even that nothing happened, is replaced after a poll."""
    monkeypatch.setattr(revocations, "SILENCE_SECONDS", 0.05)
    session_id = uuid4()
    streamer.revoked = Revocations([session_id], [])
    streamer.stream.put_nowait(Revocations([], []))
    await until(lambda: refuses(verifier, session_id))
    await until(lambda: streamer.closed > 0)


async def test_a_broken_stream_leaves_the_poll(
    streamer: Streamer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While no stream can be had the list is polled as before, and a stream is tried each time."""
    monkeypatch.setattr(revocations, "POLL_SECONDS", 0.01)
    session_id = uuid4()
    for _ in range(5):
        streamer.stream.put_nowait(PeerUnavailable())
    await until(lambda: len(streamer.opened) >= 4)
    streamer.revoked = Revocations([session_id], [])
    streamer.stream.put_nowait(PeerUnavailable())
    await until(lambda: refuses(verifier, session_id))


async def test_half_a_snapshot_is_not_believed(
    streamer: Streamer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that was never loaded whole admits nobody; the piece with the cursor completes it."""
    streamer.reachable = False
    followed = revocations.RevocationList(streamer)
    job = asyncio.create_task(followed.run(None))
    await until(lambda: bool(streamer.opened))
    session_id = uuid4()
    streamer.stream.put_nowait(Revocations([session_id], []))
    await until(lambda: followed.holds(session_id, None, 0))
    assert not await followed.ready()
    streamer.stream.put_nowait(Revocations([], [], clock.now()))
    await until(followed.ready)
    job.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await job
