"""WatchRevocations: a snapshot, then everything as it happens, and nothing lost in between."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from finity.auth.v1 import (
    auth_pb2,
    token_pb2,
    token_pb2_grpc,
)
from finity.usage.v1 import usage_pb2
from grpc import StatusCode, aio

from chassis.postgres import Connection, Database
from chassis.revocations import Revocations
from chassis.times import to_timestamp
from services.auth.domain.users import Role
from services.auth.errors import WatchFellBehind
from services.auth.service import revocations as feeds
from services.auth.service.revocations import LATEST_COMMIT, RevocationFeed
from suite.ports import free_port
from tests.factories import (
    POLICY,
    SERVICE,
    AuthRoom,
    an_address,
    log_in,
    start_process,
)
from tests.fakes import FakeClock
from tests.running import PASSWORD, SERVICE_KEY, House, bearer, refusal_of

BALANCE = usage_pb2.GetBalanceRequest()
NEVER = 3600.0


@contextlib.asynccontextmanager
async def running(feed: RevocationFeed) -> AsyncIterator[None]:
    """Runs a feed's job beside the block."""
    job = asyncio.create_task(feed.run())
    try:
        yield
    finally:
        job.cancel()
        await asyncio.wait([job])


async def a_login(auth: AuthRoom) -> tuple[UUID, UUID]:
    """Returns a new user and its session."""
    email = an_address()
    await auth.accounts.register(email=email, password=PASSWORD, key=None)
    tokens, user = await log_in(auth, email)
    return user.id, tokens.session.id


async def promote(auth: AuthRoom, user_id: UUID) -> None:
    await auth.accounts.set_role(
        user_id=user_id, role=Role.PRO, reason="paid", actor=SERVICE, key=None
    )


async def within(seconds: float, call: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(call, seconds)


async def test_a_snapshot_comes_first(auth: AuthRoom, clock: FakeClock) -> None:
    """A new watcher gets everything that still matters, and the cursor to go on from."""
    user_id, session_id = await a_login(auth)
    await auth.sessions.logout(session_id, by="user")
    await promote(auth, user_id)
    watched = auth.authority.watch(None)
    first = await anext(watched)
    assert (list(first.sessions), list(first.versions)) == ([session_id], [(user_id, 2)])
    assert first.as_of == clock.now() - LATEST_COMMIT
    await watched.aclose()


async def test_what_this_process_revokes_comes_at_once(auth: AuthRoom) -> None:
    """A logout reaches a watcher without any poll or wake-up."""
    user_id, session_id = await a_login(auth)
    watched = auth.authority.feed.watch(None)
    assert await anext(watched) == Revocations([], [], auth.authority.feed._as_of)
    await auth.sessions.logout(session_id, by="user")
    assert list((await within(60, anext(watched))).sessions) == [session_id]
    await promote(auth, user_id)
    assert list((await within(60, anext(watched))).versions) == [(user_id, 2)]
    await watched.aclose()


async def test_what_another_replica_revokes_comes_with_a_wake_up_or_a_poll(
    auth: AuthRoom, auth_database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wake-up makes the process read now; without one the next poll finds it, once."""
    monkeypatch.setattr(feeds, "POLL_SECONDS", NEVER)
    feed = RevocationFeed(auth_database, clock, POLICY.access_token)
    async with running(feed):
        watched = feed.watch(None)
        await anext(watched)
        _, session_id = await a_login(auth)
        await auth.sessions.logout(session_id, by="user")
        feed.wake()
        await until_told(watched, session_id)
        await watched.aclose()
    monkeypatch.setattr(feeds, "POLL_SECONDS", 0.1)
    async with running(feed):
        watched = feed.watch(clock.now())
        _, session_id = await a_login(auth)
        await auth.sessions.logout(session_id, by="user")
        await until_told(watched, session_id)
        for _ in range(3):
            assert session_id not in (await within(60, anext(watched))).sessions
        await watched.aclose()


async def until_told(watched: Any, session_id: UUID) -> None:
    """Reads messages until one ends the session."""

    async def read() -> None:
        while session_id not in (await anext(watched)).sessions:
            pass

    await within(60, read())


async def test_silence_means_that_the_feed_is_dead(
    auth: AuthRoom, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages come while nothing happens, and their cursor moves on with the clock."""
    monkeypatch.setattr(feeds, "POLL_SECONDS", 0.06)
    watched = auth.authority.watch(None)
    first = await anext(watched)
    clock.advance(seconds=5)
    async with running(auth.authority.feed):
        beat = await within(60, anext(watched))
    assert (list(beat.sessions), list(beat.versions)) == ([], [])
    assert first.as_of is not None
    assert beat.as_of == first.as_of + timedelta(seconds=5)
    await watched.aclose()


async def test_a_watcher_that_comes_back_has_lost_nothing(
    auth: AuthRoom, auth_database: Database, clock: FakeClock
) -> None:
    """Resuming with the cursor gives what was revoked meanwhile, from any replica."""
    watched = auth.authority.watch(None)
    cursor = (await anext(watched)).as_of
    await watched.aclose()
    clock.advance(seconds=200)
    _, session_id = await a_login(auth)
    await auth.sessions.logout(session_id, by="user")
    clock.advance(seconds=200)
    for feed in (
        auth.authority.feed,
        RevocationFeed(auth_database, clock, POLICY.access_token),
    ):
        await feed.poll()
        resumed = feed.watch(cursor)
        assert session_id in (await anext(resumed)).sessions
        await resumed.aclose()
        fresh = feed.watch(clock.now())
        assert list((await anext(fresh)).sessions) == []
        await fresh.aclose()


async def test_a_late_commit_is_not_lost(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """A row stamped before a poll and committed after it comes with the next one."""
    _, session_id = await a_login(auth)
    stamped = clock.now()
    clock.advance(seconds=LATEST_COMMIT.total_seconds() - 1)
    watched = auth.authority.watch(None)
    cursor = (await anext(watched)).as_of
    await owner.execute(
        "UPDATE sessions SET ended_at = $2, end_reason = 'logout' WHERE id = $1",
        session_id,
        stamped,
    )
    await auth.authority.feed.poll()
    await until_told(watched, session_id)
    await watched.aclose()
    resumed = auth.authority.watch(cursor)
    assert session_id in (await anext(resumed)).sessions
    await resumed.aclose()


async def test_what_nobody_can_present_any_more_is_forgotten(
    auth: AuthRoom, clock: FakeClock
) -> None:
    """After one access token lifetime a revocation is no part of a snapshot, nor of memory."""
    _, session_id = await a_login(auth)
    await auth.sessions.logout(session_id, by="user")
    clock.advance(seconds=(POLICY.access_token + 2 * LATEST_COMMIT).total_seconds())
    await auth.authority.feed.poll()
    watched = auth.authority.watch(None)
    assert list((await anext(watched)).sessions) == []
    assert auth.authority.feed._sessions == {}
    await watched.aclose()


async def test_a_long_list_comes_in_pieces(auth: AuthRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last piece has the cursor: whoever loses the stream before has none yet."""
    monkeypatch.setattr(feeds, "PIECE", 2)
    revoked = [uuid4() for _ in range(5)]
    await auth.authority.feed.poll()
    auth.authority.feed.publish(Revocations(revoked, []))
    watched = auth.authority.watch(None)
    pieces = [await anext(watched) for _ in range(3)]
    assert [session_id for piece in pieces for session_id in piece.sessions] == revoked
    assert [piece.as_of is not None for piece in pieces] == [False, False, True]
    await watched.aclose()


async def test_a_slow_watcher_is_told_to_resume(
    auth: AuthRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that leaves too much unread costs no more memory, gets a refusal, and goes on."""
    monkeypatch.setattr(feeds, "BUFFER", 10)
    slow, quick = auth.authority.watch(None), auth.authority.watch(None)
    cursor = (await anext(slow)).as_of
    await anext(quick)
    revoked = [uuid4() for _ in range(30)]
    for session_id in revoked:
        auth.authority.feed.publish(Revocations([session_id], []))
        assert list((await anext(quick)).sessions) == [session_id]
    with pytest.raises(WatchFellBehind):
        await anext(slow)
    assert len(auth.authority.feed._watchers) == 1
    resumed = auth.authority.watch(cursor)
    assert list((await anext(resumed)).sessions) == revoked
    for watched in (quick, resumed):
        await watched.aclose()
    assert auth.authority.feed._watchers == set()


async def test_a_process_that_stops_ends_its_streams(auth: AuthRoom) -> None:
    """The reader sees an end, not an error, and looks for another replica."""
    watched = auth.authority.watch(None)
    await anext(watched)
    auth.authority.feed.close()
    assert [message async for message in watched] == []


def watch(house: House, **asked: Any) -> Any:
    stub = token_pb2_grpc.TokenServiceStub(house.auth_channel)
    return stub.WatchRevocations(token_pb2.WatchRevocationsRequest(**asked), metadata=house.service)


async def test_a_stream_over_the_wire(house: House, clock: FakeClock) -> None:
    """Snapshot, logout, change of role and resumption, as any service sees them."""
    gone, changed = await house.person(), await house.person()
    await house.auth.Logout(auth_pb2.LogoutRequest(), metadata=gone.metadata)
    stream = watch(house)
    first = await within(60, stream.read())
    assert gone.tokens.session_id in first.session_ids
    await house.auth.SetRole(
        auth_pb2.SetRoleRequest(user_id=changed.user_id, role=auth_pb2.ROLE_PRO, reason="paid"),
        metadata=house.service,
    )
    told = auth_pb2.UserRevocation(user_id=changed.user_id, min_token_version=2)
    while told not in (message := await within(60, stream.read())).users:
        pass
    stream.cancel()
    resumed = watch(house, since_time=message.as_of_time)
    assert told in (await within(60, resumed.read())).users
    resumed.cancel()
    later = watch(house, since_time=to_timestamp(clock.now()))
    assert list((await within(60, later.read())).session_ids) == []
    later.cancel()


async def test_a_slow_reader_over_the_wire_is_refused(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal is ABORTED WATCH_FELL_BEHIND with a delay, not an endless buffer."""
    monkeypatch.setattr(feeds, "BUFFER", 0)
    stream = watch(house)
    with pytest.raises(aio.AioRpcError) as caught:
        async for _ in stream:
            pass
    assert refusal_of(caught.value) == (StatusCode.ABORTED, "WATCH_FELL_BEHIND")


async def test_a_stopping_service_does_not_wait_for_its_streams(
    database_url: str, redis_url: str
) -> None:
    """SIGTERM ends an open stream with OK, long before the drain would be over."""
    port = free_port()
    process = await start_process(
        "auth", database_url, redis_url, {"FINITY_DRAIN_SECONDS": "60"}, port=port
    )
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = token_pb2_grpc.TokenServiceStub(channel).WatchRevocations(
                token_pb2.WatchRevocationsRequest(),
                metadata=bearer(SERVICE_KEY),
                wait_for_ready=True,
            )
            await within(60, stream.read())
            process.child.terminate()

            async def read_to_the_end() -> None:
                while await stream.read() is not aio.EOF:
                    pass

            await within(30, read_to_the_end())
            assert await stream.code() is StatusCode.OK
        code, _ = await within(30, process.finish())
        assert code == 0
    finally:
        await process.kill()
