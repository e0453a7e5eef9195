"""chassis.tokens: access tokens as every service verifies them."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.asyncio import Redis

from chassis import revocations, tokens, wakeups
from chassis.background import background
from chassis.refusals import CredentialsInvalid, PeerUnavailable, TokenExpired, TokenRevoked
from chassis.revocations import Revocations
from chassis.tokens import TokenVerifier
from tests.chassis.issuer import NAME, Issuer, nested_header, unsigned
from tests.chassis.waiting import until
from tests.fakes import FakeClock


@pytest.fixture
def issuer(clock: FakeClock) -> Issuer:
    return Issuer(clock)


@pytest.fixture
def verifier(issuer: Issuer, clock: FakeClock) -> TokenVerifier:
    return TokenVerifier(issuer, NAME, clock)


@contextlib.asynccontextmanager
async def running(verifier: TokenVerifier, redis: Redis | None) -> AsyncIterator[None]:
    """Keeps a verifier fresh while the block runs."""
    task = asyncio.create_task(verifier.run(redis))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def eventually_revoked(verifier: TokenVerifier, token: str) -> None:
    """Waits until a token is refused as revoked."""

    async def revoked() -> bool:
        try:
            await verifier.verify(token)
        except TokenRevoked:
            return True
        return False

    await until(revoked)


async def test_a_good_token_names_its_user(verifier: TokenVerifier, issuer: Issuer) -> None:
    """User, session and role of a good token are the caller's, its end is its exp."""
    user_id, session_id = uuid4(), uuid4()
    end = int(issuer.clock.now().timestamp()) + 60
    said = await verifier.inspect(issuer.token_of(user_id, session_id, exp=end))
    caller = said.caller
    assert (caller.user_id, caller.session_id, caller.role) == (user_id, session_id, "free")
    assert said.expires == end


async def test_a_token_names_who_acts(verifier: TokenVerifier, issuer: Issuer) -> None:
    """The claim "act" is the caller's actor (RFC 8693 section 4.1), who is the one who acts."""
    actor = uuid4()
    caller = await verifier.verify(issuer.token(act={"sub": str(actor)}))
    assert (caller.actor, caller.actor_key) == (actor, f"user:{actor}")
    caller = await verifier.verify(issuer.token())
    assert (caller.actor, caller.actor_key) == (None, caller.key)


async def test_a_token_ends_when_it_says(
    verifier: TokenVerifier, issuer: Issuer, clock: FakeClock
) -> None:
    """A token is refused from its exp on, though it was verified before."""
    token = issuer.token(exp=int(clock.now().timestamp()) + 60)
    await verifier.verify(token)
    clock.advance(seconds=61)
    for _ in range(2):
        with pytest.raises(TokenExpired):
            await verifier.verify(token)


def misuses(issuer: Issuer) -> dict[str, str]:
    """Returns tokens none of which may ever be accepted."""
    stranger = Ed25519PrivateKey.generate()
    claims, header = issuer.claims(), {"kid": issuer.kid}
    good = issuer.token()
    first, _, signature = good.split(".")
    other = issuer.token(role="admin").split(".")[1]
    raw = base64.urlsafe_b64decode(issuer.public + "=")
    return {
        "wrong signature": jwt.encode(claims, stranger, algorithm="EdDSA", headers=header),
        "payload of another token": f"{first}.{other}.{signature}",
        "no signature": good.rpartition(".")[0] + ".",
        "alg=none": unsigned(claims, issuer.kid),
        "alg=none, signed": unsigned(claims, issuer.kid) + signature,
        "hs256 with the public key": jwt.encode(claims, raw, algorithm="HS256", headers=header),
        "hs256 with its text": jwt.encode(claims, issuer.public, algorithm="HS256", headers=header),
        "wrong issuer": issuer.token(iss="https://elsewhere.test"),
        "no issuer": issuer.token(iss=None),
        "wrong audience": issuer.token(aud="another"),
        "no audience": issuer.token(aud=None),
        "no end": issuer.token(exp=None),
        "no user": issuer.token(sub=None),
        "an actor without a name": issuer.token(act={}),
        "an actor who is no user": issuer.token(act={"sub": "root"}),
        "an actor that is none": issuer.token(act="root"),
        "no session": issuer.token(sid=None),
        "no version": issuer.token(ver=None),
        "no role": issuer.token(role=None),
        "user is no id": issuer.token(sub="ada"),
        "session is a number": issuer.token(sid=7),
        "unknown kid": issuer.token(kid="second"),
        "no kid": jwt.encode(claims, issuer.key, algorithm="EdDSA"),
        "not a token": "x.y.z",
        "empty parts": "..",
        "binary": "\x01\x7f",
        "deeply nested header": nested_header(),
    }


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
async def test_misused_tokens_are_invalid(verifier: TokenVerifier, issuer: Issuer) -> None:
    """Another signature, algorithm, issuer, audience, key or shape is refused, by one reason."""
    await verifier.verify(issuer.token())
    accepted = []
    for name, token in misuses(issuer).items():
        try:
            await verifier.verify(token)
        except CredentialsInvalid:
            continue
        except Exception as error:  # noqa: BLE001 - the name of the misuse belongs in the failure
            accepted.append(f"{name}: {error!r}")
        else:
            accepted.append(name)
    assert accepted == []


async def test_a_revoked_session_ends_its_tokens(verifier: TokenVerifier, issuer: Issuer) -> None:
    """A session's tokens are refused once it is revoked, another session's are not."""
    user_id, ended, other = uuid4(), uuid4(), uuid4()
    token, kept = issuer.token_of(user_id, ended), issuer.token_of(user_id, other)
    await verifier.verify(token)
    verifier.revoke(Revocations([ended], []))
    with pytest.raises(TokenRevoked):
        await verifier.verify(token)
    await verifier.verify(kept)


async def test_a_revoked_version_ends_older_tokens(verifier: TokenVerifier, issuer: Issuer) -> None:
    """Tokens below the least version are refused, a late message never lowers it."""
    user_id = uuid4()
    old, new = (issuer.token_of(user_id, uuid4(), ver=version) for version in (1, 3))
    verifier.revoke(Revocations([], [(user_id, 3)]))
    verifier.revoke(Revocations([], [(user_id, 2)]))
    with pytest.raises(TokenRevoked):
        await verifier.verify(old)
    await verifier.verify(new)


async def test_keys_that_cannot_be_had_are_a_peer_unavailable(
    verifier: TokenVerifier, issuer: Issuer
) -> None:
    """Without keys nobody is told that a token is bad; once they come it is good."""
    issuer.reachable = False
    with pytest.raises(PeerUnavailable):
        await verifier.verify(issuer.token())
    issuer.reachable = True
    await verifier.verify(issuer.token())


async def test_known_keys_outlive_the_authority(verifier: TokenVerifier, issuer: Issuer) -> None:
    """Tokens of a known key are verified while auth is down."""
    await verifier.verify(issuer.token())
    issuer.reachable = False
    await verifier.verify(issuer.token())


async def test_a_new_key_is_loaded_but_not_at_every_call(
    verifier: TokenVerifier, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers with unknown key ids share one request for keys, and all get the right answer."""
    monkeypatch.setattr(tokens, "KEY_RELOAD_SECONDS", 0.05)
    await verifier.verify(issuer.token())
    made_up = [verifier.verify(issuer.token(kid="made up")) for _ in range(20)]
    issuer.kid, issuer.key = "second", Ed25519PrivateKey.generate()
    good = [verifier.verify(issuer.token()) for _ in range(20)]
    answers = await asyncio.gather(*made_up, *good, return_exceptions=True)
    assert [type(answer) for answer in answers[:20]] == [CredentialsInvalid] * 20
    assert not any(isinstance(answer, Exception) for answer in answers[20:])
    assert issuer.key_calls == 2


async def test_a_withdrawn_key_verifies_nothing_for_long(
    verifier: TokenVerifier, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are loaded again when they are old, and a token of a vanished key is refused."""
    old = issuer.token()
    await verifier.verify(old)
    issuer.kid, issuer.key = "second", Ed25519PrivateKey.generate()
    monkeypatch.setattr(tokens, "KEY_LIFE_SECONDS", 0.0)
    monkeypatch.setattr(tokens, "KEY_RELOAD_SECONDS", 0.0)
    with pytest.raises(CredentialsInvalid):
        await verifier.verify(old)


async def test_without_revocations_no_token_is_trusted(
    verifier: TokenVerifier, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that never learned what was revoked, or long ago, refuses users' tokens."""
    await verifier.verify(issuer.token())
    monkeypatch.setattr(revocations, "STALE_SECONDS", 0.0)
    with pytest.raises(PeerUnavailable):
        await verifier.verify(issuer.token())


async def test_the_cache_is_bounded(
    verifier: TokenVerifier, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache keeps the tokens used last and never more than its bound."""
    monkeypatch.setattr(tokens, "CACHED_TOKENS", 3)
    first, second, third, fourth = (issuer.token() for _ in range(4))
    for token in (first, second, third, first, fourth):
        await verifier.verify(token)
    assert list(verifier._cache) == [third, first, fourth]


async def test_a_message_wakes_the_poll(
    verifier: TokenVerifier, issuer: Issuer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message on Redis makes every verifier ask at once what was revoked."""
    monkeypatch.setattr(revocations, "POLL_SECONDS", 3600.0)
    session_id = uuid4()
    token = issuer.token_of(uuid4(), session_id)
    await verifier.verify(token)
    async with (
        Redis.from_url(redis_url) as redis,
        Redis.from_url(redis_url) as publisher,
        running(verifier, redis),
    ):
        # Starting polls once and subscribing wakes it once more.
        await until(lambda: issuer.polls >= 2)
        await verifier.verify(token)
        issuer.revoked = Revocations([session_id], [])
        await wakeups.announce(publisher)
        await eventually_revoked(verifier, token)


@pytest.mark.parametrize("absent", [True, False], ids=["no redis", "redis down"])
async def test_polling_works_without_redis(
    verifier: TokenVerifier, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, absent: bool
) -> None:
    """With Redis absent or down a revocation comes with the next poll that auth answers."""
    monkeypatch.setattr(revocations, "POLL_SECONDS", 0.01)
    session_id = uuid4()
    token = issuer.token_of(uuid4(), session_id)
    await verifier.verify(token)
    redis = None if absent else Redis.from_url("redis://127.0.0.1:1")
    issuer.reachable = False
    async with running(verifier, redis):
        await until(lambda: issuer.polls >= 3)
        issuer.reachable = True
        issuer.revoked = Revocations([session_id], [])
        await eventually_revoked(verifier, token)
    if redis:
        await redis.aclose()


async def test_the_listener_ends_with_whoever_started_it(
    verifier: TokenVerifier, redis_url: str
) -> None:
    """Redis' client loses a cancellation that comes while it connects, and would go on for ever."""
    others = asyncio.all_tasks()
    for turns in range(50):
        async with Redis.from_url(redis_url) as redis, background(partial(verifier.run, redis)):
            for _ in range(turns):
                await asyncio.sleep(0)
        left = asyncio.all_tasks() - others
        for task in left:
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=0.1)
        assert not left, f"ended after {turns} turns"


async def test_a_message_to_nobody_harms_nobody() -> None:
    """Announcing while Redis is down is not an error: the poll finds it."""
    async with Redis.from_url("redis://127.0.0.1:1") as redis:
        await wakeups.announce(redis)
