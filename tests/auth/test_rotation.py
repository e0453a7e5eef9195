"""Signing keys: published first, signing later, verifying until their last token is over."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any

import jwt
import pytest
from finity.auth.v1 import auth_pb2, token_pb2, token_pb2_grpc
from finity.usage.v1 import usage_pb2

from chassis import revocations, tokens
from chassis.background import background
from chassis.idempotency import Key
from chassis.postgres import Connection, Database
from chassis.refusals import CredentialsInvalid
from chassis.tokens import TokenVerifier
from services.auth.domain.signing_keys import MARGIN, KeyPlan, KeyState, signing_key
from services.auth.service import signing_keys as service_signing_keys
from services.auth.service.rotation import KeyService, Rotation
from services.auth.store import signing_keys as store_signing_keys
from tests.factories import (
    ISSUER,
    POLICY,
    SERVICE,
    AuthRoom,
    an_address,
    answers_with,
    at_once,
    eventually,
    log_in,
    open_auth,
    reason_of,
)
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, Person, bearer, open_house

TICK = timedelta(microseconds=1)
DELAY = POLICY.key_delay
BALANCE = usage_pb2.GetBalanceRequest()


async def rotate(auth: AuthRoom, key: Key | None = None) -> Rotation:
    return await KeyService(auth.room).rotate(reason="test", caller=SERVICE, key=key)


async def kid_of_a_login(auth: AuthRoom, email: str) -> str:
    return kid_of((await log_in(auth, email))[0].access_token)


def kid_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


async def published(auth: AuthRoom) -> list[str]:
    return [key["kid"] for key in await auth.authority.signing_keys()]


async def member(auth: AuthRoom) -> str:
    """Registers somebody; returns the address."""
    email = an_address()
    await auth.accounts.register(email=email, password=PASSWORD, key=None)
    return email


def a_verifier(auth: AuthRoom, clock: FakeClock) -> TokenVerifier:
    """A verifier that has no key yet."""
    return TokenVerifier(auth.authority, ISSUER, clock)


async def test_a_new_key_is_published_before_it_signs(auth: AuthRoom, clock: FakeClock) -> None:
    """Until its time comes the old key signs, and everybody can have the new one."""
    email = await member(auth)
    old = await kid_of_a_login(auth, email)
    rotation = await rotate(auth)
    assert (rotation.created, rotation.activates_at) == (True, clock.now() + DELAY)
    assert await published(auth) == [rotation.kid, old]
    clock.advance(seconds=(DELAY - TICK).total_seconds())
    assert await kid_of_a_login(auth, email) == old
    clock.advance(microseconds=1)
    assert await kid_of_a_login(auth, email) == rotation.kid


async def test_tokens_of_both_keys_verify_during_the_overlap(
    auth: AuthRoom, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last token of the old key is good to its end; then the key is withdrawn."""
    monkeypatch.setattr(tokens, "KEY_RELOAD_SECONDS", 0.0)
    email = await member(auth)
    rotation = await rotate(auth)
    clock.advance(seconds=(DELAY - TICK).total_seconds())
    last, _ = await log_in(auth, email)
    clock.advance(microseconds=1)
    first, _ = await log_in(auth, email)
    assert kid_of(last.access_token) != kid_of(first.access_token) == rotation.kid
    for verifier in (auth.verifier, a_verifier(auth, clock)):
        for opened in (last, first):
            await verifier.verify(opened.access_token)
    clock.advance(seconds=(POLICY.access_token + MARGIN - TICK).total_seconds())
    assert await published(auth) == [rotation.kid, kid_of(last.access_token)]
    clock.advance(microseconds=1)
    assert await published(auth) == [rotation.kid]


async def test_a_withdrawn_key_verifies_nothing(
    auth: AuthRoom, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever still holds the old private key cannot make a token that anybody accepts."""
    monkeypatch.setattr(tokens, "KEY_RELOAD_SECONDS", 0.0)
    email = await member(auth)
    opened, user = await log_in(auth, email)
    old = auth.signer._signers[kid_of(opened.access_token)]
    await rotate(auth)
    clock.advance(seconds=(DELAY + POLICY.access_token + MARGIN).total_seconds())
    now = clock.now()
    forged = old.sign(
        user, opened.session, token_id="t", now=now, expires=now + timedelta(minutes=5)
    )
    with pytest.raises(CredentialsInvalid):
        await a_verifier(auth, clock).verify(forged)


async def test_replicas_follow(
    auth: AuthRoom, auth_database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that was running learns of the new key and signs with it from the same moment."""
    monkeypatch.setattr(service_signing_keys, "REFRESH_SECONDS", 0.01)
    email = await member(auth)
    async with open_auth(auth_database, clock) as other, following(other):
        rotation = await rotate(auth)

        async def knows() -> bool:
            return rotation.kid in await published(other)

        await eventually(knows)
        assert await kid_of_a_login(other, email) != rotation.kid
        clock.advance(seconds=DELAY.total_seconds())
        for replica in (auth, other):
            assert await kid_of_a_login(replica, email) == rotation.kid
        for replica in (auth, other):
            token = (await log_in(replica, email))[0].access_token
            for reader in (auth, other):
                await reader.verifier.verify(token)


@contextlib.asynccontextmanager
async def following(auth: AuthRoom) -> AsyncIterator[None]:
    """Runs a replica's background job."""
    job = asyncio.create_task(auth.signer.run())
    try:
        yield
    finally:
        job.cancel()
        await asyncio.wait([job])


async def test_a_replica_that_starts_meanwhile_signs_with_the_old_key(
    auth: AuthRoom, auth_database: Database, clock: FakeClock
) -> None:
    """Starting during a rotation brings nothing forward."""
    email = await member(auth)
    old = await kid_of_a_login(auth, email)
    await rotate(auth)
    async with open_auth(auth_database, clock) as other:
        assert await kid_of_a_login(other, email) == old


@pytest.mark.usefixtures("every_connection")
async def test_fifty_rotations_make_one_key(auth: AuthRoom, owner: Connection) -> None:
    """One of 50 makes the key, the others are told of it; so is whoever comes while it waits."""
    answers = await at_once(50, lambda _: rotate(auth))
    assert len({answer.kid for answer in answers}) == 1
    assert sum(answer.created for answer in answers) == 1
    late = await rotate(auth)
    assert (late.kid, late.created) == (answers[0].kid, False)
    assert await owner.fetchval("SELECT count(*) FROM signing_keys") == 2
    logged = await owner.fetch("SELECT actor, details->>'kid' AS kid FROM admin_logs")
    assert [tuple(row) for row in logged] == [("service:test", late.kid)]


@pytest.mark.usefixtures("every_connection")
async def test_looking_first_would_make_many(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the conditional statement and the index there are several keys."""
    await owner.execute("DROP INDEX signing_keys_one_signs")

    async def look_first(conn: Connection, **values: Any) -> bool:
        plan = await store_signing_keys.newest_plan(conn)
        if plan.activates_at > values["now"]:
            return False
        await conn.execute("SELECT pg_sleep(0.05)")
        await conn.execute(
            "UPDATE signing_keys SET retired_at = $2, expires_at = $3 WHERE kid = $1",
            plan.kid,
            values["retired_at"],
            values["expires_at"],
        )
        return True

    monkeypatch.setattr(store_signing_keys, "retire_signing_key", look_first)
    await at_once(50, lambda _: rotate(auth))
    assert await owner.fetchval("SELECT count(*) FROM signing_keys") > 2


async def test_a_rotation_with_a_key_is_made_once(auth: AuthRoom, clock: FakeClock) -> None:
    """The same idempotency key gets the first answer, though another rotation would be due."""
    key = Key("service:test", "RotateSigningKeys", "k", b"same")
    first = await rotate(auth, key)
    clock.advance(seconds=DELAY.total_seconds())
    assert await rotate(auth, key) == first
    second = await rotate(auth)
    assert second.created
    assert second.kid != first.kid


def test_a_key_s_life(clock: FakeClock) -> None:
    """It waits, signs, verifies and is withdrawn, each from the moment planned."""
    now = clock.now()
    plan = KeyPlan("k", now, now + timedelta(days=1), now + timedelta(days=2))
    states = [plan.state(now + shift) for shift in (-TICK, timedelta(), timedelta(days=1) - TICK)]
    states += [plan.state(now + timedelta(days=days)) for days in (1, 2)]
    assert states == [
        KeyState.WAITS,
        KeyState.SIGNS,
        KeyState.SIGNS,
        KeyState.VERIFIES,
        KeyState.WITHDRAWN,
    ]
    assert signing_key([plan], now - timedelta(days=1)) is plan


async def test_both_rooms_accept_tokens_of_before_and_after(
    database_url: str, redis_url: str, transport: str, clock: FakeClock
) -> None:
    """A rotation over the wire logs nobody out of any service; who asked for it is logged."""
    async with open_house(
        database_url, redis_url, transport, clock, signing_key_delay_seconds=0
    ) as house:
        before = await house.person()
        await house.usage.GetBalance(BALANCE, metadata=before.metadata)
        stub = token_pb2_grpc.TokenServiceStub(house.auth_channel)
        request = token_pb2.RotateSigningKeysRequest(reason="yearly")
        answer = await stub.RotateSigningKeys(request, metadata=house.service)
        assert answer.created
        after = await again(house, before)
        assert kid_of(after.tokens.access_token) == answer.kid
        for person in (before, after):
            await house.usage.GetBalance(BALANCE, metadata=person.metadata)
            await house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=person.metadata)
        refresh = auth_pb2.RefreshSessionRequest(refresh_token=before.tokens.refresh_token)
        tokens_now = (await house.auth.RefreshSession(refresh)).tokens
        assert kid_of(tokens_now.access_token) == answer.kid
        await house.usage.GetBalance(BALANCE, metadata=bearer(tokens_now.access_token))
        keys = await house.auth.GetSigningKeys(auth_pb2.GetSigningKeysRequest())
        assert keys.keys[0].kid == answer.kid
        assert len(keys.keys) == 2


async def again(house: House, person: Person) -> Person:
    request = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
    return Person(person.user_id, person.email, (await house.auth.Login(request)).tokens)


async def test_a_leaked_key_is_withdrawn_at_once(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """The new key signs, every other one ends, also one that waits; the log names them."""
    email = await member(auth)
    opened, _ = await log_in(auth, email)
    old, waiting = kid_of(opened.access_token), (await rotate(auth)).kid
    rotation = await withdraw(auth)
    assert (rotation.created, rotation.activates_at) == (True, clock.now())
    assert await published(auth) == [rotation.kid]
    assert await kid_of_a_login(auth, email) == rotation.kid
    # Sessions are not the key's.
    refreshed = await auth.sessions.refresh(opened.refresh_token)
    assert kid_of(refreshed.access_token) == rotation.kid
    async with auth.room.database.connection() as conn:
        plans = await store_signing_keys.list_plans(conn)
    states = {plan.kid: plan.state(clock.now()) for plan in plans}
    ended = KeyState.WITHDRAWN
    assert states == {rotation.kid: KeyState.SIGNS, waiting: ended, old: ended}
    log = "SELECT details->>'withdrawn' FROM admin_logs ORDER BY seq DESC LIMIT 1"
    assert set(str(await owner.fetchval(log)).split()) == {old, waiting}
    assert (await rotate(auth)).created


async def withdraw(auth: AuthRoom) -> Rotation:
    service = KeyService(auth.room)
    return await service.rotate(reason="leaked", caller=SERVICE, key=None, withdraw=True)


async def test_rotations_beside_a_withdrawal_leave_a_key_that_signs(
    auth: AuthRoom, auth_database: Database, clock: FakeClock
) -> None:
    """Each withdrawal makes its key, one key has no successor and the first one is gone."""
    for _ in range(5):
        (old,) = [key.plan.kid for key in auth.signer._stored if key.plan.retired_at is None]
        answers = await at_once(10, lambda index: withdraw(auth) if index % 2 else rotate(auth))
        await auth.signer.load()
        # On a machine that stands still all of them may give up waiting for a rotation.
        withdrawals = [answer for answer in answers[1::2] if isinstance(answer, Rotation)]
        assert all(withdrawal.created for withdrawal in withdrawals)
        if withdrawals:
            assert old not in await published(auth)
        assert len(await published(auth)) in (1, 2)
        clock.advance(seconds=DELAY.total_seconds())


async def test_a_slow_load_does_not_bring_a_withdrawn_key_back(
    auth: AuthRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that follows other replicas may have read the keys just before one is withdrawn."""
    (old,) = await published(auth)
    was_read, go_on = asyncio.Event(), asyncio.Event()
    read = store_signing_keys.list_signing_keys

    async def slowly(*arguments: Any) -> Any:
        stored = await read(*arguments)
        if not was_read.is_set():
            was_read.set()
            await go_on.wait()
        return stored

    monkeypatch.setattr(store_signing_keys, "list_signing_keys", slowly)
    slow = asyncio.create_task(auth.signer.load())
    await was_read.wait()
    withdrawal = asyncio.create_task(withdraw(auth))
    await asyncio.wait([withdrawal], timeout=0.5)
    go_on.set()
    await asyncio.gather(slow, withdrawal)
    assert old not in await published(auth)


@pytest.mark.parametrize("streams", [True, False])
async def test_a_withdrawn_key_verifies_nothing_in_any_process(
    auth: AuthRoom, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    """A process that has its token in the cache hears of it by stream or poll, without Redis."""
    monkeypatch.setattr(revocations, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(tokens, "KEY_RELOAD_SECONDS", 0.0)
    verifier = TokenVerifier(auth.authority if streams else Polled(auth), ISSUER, clock)
    async with background(auth.authority.feed.run), background(partial(verifier.run, None)):
        opened, _ = await log_in(auth, await member(auth))
        await verifier.verify(opened.access_token)
        await withdraw(auth)

        async def refused() -> bool:
            return await reason_of(verifier.verify(opened.access_token)) == "CREDENTIALS_INVALID"

        await eventually(refused)


class Polled:
    """An authority that does not stream."""

    def __init__(self, auth: AuthRoom) -> None:
        self.signing_keys = auth.authority.signing_keys
        self.revocations = auth.authority.revocations


async def test_not_told_a_process_keeps_a_withdrawn_key(
    auth: AuthRoom, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: who is not told which keys there are takes a token of the cache."""
    monkeypatch.setattr(tokens.KeyRing, "told", lambda *_: None)
    verifier = a_verifier(auth, clock)
    opened, _ = await log_in(auth, await member(auth))
    await verifier.verify(opened.access_token)
    await withdraw(auth)
    await verifier._revocations.poll()
    await verifier.verify(opened.access_token)


async def test_a_withdrawal_reaches_every_room(
    database_url: str, redis_url: str, transport: str, clock: FakeClock
) -> None:
    """Over the wire: tokens of before are refused in the other room, refreshed ones are not."""
    async with open_house(database_url, redis_url, transport, clock) as house:
        before = await house.person()
        await house.usage.GetBalance(BALANCE, metadata=before.metadata)
        stub = token_pb2_grpc.TokenServiceStub(house.auth_channel)
        request = token_pb2.RotateSigningKeysRequest(reason="leaked", withdraw=True)
        assert (await stub.RotateSigningKeys(request, metadata=house.service)).created
        await eventually(
            lambda: answers_with(
                house.usage.GetBalance(BALANCE, metadata=before.metadata), "CREDENTIALS_INVALID"
            )
        )
        refresh = auth_pb2.RefreshSessionRequest(refresh_token=before.tokens.refresh_token)
        now = (await house.auth.RefreshSession(refresh)).tokens
        await house.usage.GetBalance(BALANCE, metadata=bearer(now.access_token))
