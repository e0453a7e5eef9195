"""Signing in with identity providers, as use cases: what happens once, and what is refused."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from chassis.callers import Caller, Kind
from chassis.clock import Clock
from chassis.errors import Code, Refusal
from chassis.ids import uuid7
from chassis.postgres import Connection
from services.auth.config import Settings
from services.auth.domain.oauth import Answer, Flow, Identity, Proof
from services.auth.domain.sessions import Acr
from services.auth.domain.users import User
from services.auth.errors import IdentityAlreadyLinked, LastSignInMethod, OAuthStateInvalid
from services.auth.providers import http, open_providers
from services.auth.service.oauth import OAuthService, Started
from services.auth.store import oauth as store_oauth
from services.auth.store import users as store_users
from services.auth.worker import sweep
from tests import github
from tests.factories import MEANS, AuthRoom, at_once, make_user, reason_of, sooner_or_later
from tests.fakes import FakeClock
from tests.mailbox import templates
from tests.owner import verify_address


@dataclass(frozen=True, slots=True)
class Desk:
    """The use cases over the stand-in for GitHub."""

    oauth: OAuthService
    hub: github.GitHub
    auth: AuthRoom
    clock: Clock

    async def start(self) -> Started:
        return await self.oauth.start_sign_in(provider="github", redirect_uri=github.REDIRECT_URI)

    async def come_back(self, person: github.Person) -> tuple[str, Answer]:
        """Goes to the provider and back; returns flow and answer."""
        started = await self.start()
        return started.flow, answered(started, person)

    async def sign_in(self, person: github.Person) -> User:
        flow, answer = await self.come_back(person)
        return (await self.oauth.finish_sign_in(flow=flow, answer=answer, means=MEANS))[1]

    async def finish(self, flow: str, answer: Answer) -> Any:
        return await self.oauth.finish_sign_in(flow=flow, answer=answer, means=MEANS)

    def caller(self, user_id: UUID) -> Caller:
        """Somebody who logged in just now."""
        now = self.clock.now()
        return Caller(Kind.USER, user_id=user_id, acr=Acr.AAL1, auth_time=now)

    async def present(self, user_id: UUID) -> Caller:
        """The same, with the session."""
        async with self.auth.room.database.transaction() as conn:
            tokens, _ = await self.auth.sessions.sign_in(conn, user_id, MEANS, self.clock.now())
        return replace(self.caller(user_id), session_id=tokens.session.id)

    async def link(self, user_id: UUID, person: github.Person) -> Identity:
        caller = await self.present(user_id)
        started = await self.oauth.start_linking(
            caller, provider="github", redirect_uri=github.REDIRECT_URI
        )
        answer = answered(started, person)
        return await self.oauth.finish_linking(caller, flow=started.flow, answer=answer)

    async def identities(self, user_id: UUID) -> list[Identity]:
        found, _ = await self.oauth.list_identities(self.caller(user_id), before=None, limit=100)
        return list(found)


def answered(started: Started, person: github.Person) -> Answer:
    code, state = github.consent(started.authorization_url, person)
    return Answer(state, code, "", "")


@pytest.fixture
async def desk(auth: AuthRoom, clock: FakeClock) -> AsyncIterator[Desk]:
    async with github.serving() as hub:
        settings = Settings(oauth_providers={"github": hub.setting})
        async with open_providers(settings.providers(), clock) as providers:
            oauth = OAuthService(auth.room, auth.accounts, auth.sessions, providers)
            yield Desk(oauth, hub, auth, clock)


async def fifty_finish(desk: Desk) -> list[Any]:
    flow, answer = await desk.come_back(github.Person())
    return await at_once(50, lambda _: desk.finish(flow, answer))


@pytest.mark.usefixtures("every_connection")
async def test_fifty_that_finish_one_flow_open_one_session(desk: Desk, owner: Connection) -> None:
    """One of 50 parallel calls exchanges the code; the others find the flow used."""
    for round_ in range(1, 4):
        answers = await fifty_finish(desk)
        assert sum(isinstance(answer, OAuthStateInvalid) for answer in answers) == 49
        assert desk.hub.exchanges == round_
        assert await owner.fetchval("SELECT count(*) FROM sessions") == round_


@pytest.mark.usefixtures("every_connection")
async def test_a_flow_that_is_only_looked_at_opens_several(
    desk: Desk, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the conditional update the same race opens many sessions."""

    async def look(conn: Connection, *, flow_digest: str, **_: Any) -> Flow | None:
        row = await conn.fetchrow(
            "SELECT id, provider, purpose, user_id, redirect_uri, created_at, expires_at"
            " FROM oauth_flows WHERE flow = $1 AND claimed_at IS NULL",
            flow_digest,
        )
        return store_oauth._flow(row) if row else None

    monkeypatch.setattr(store_oauth, "claim_flow", look)
    await fifty_finish(desk)
    assert await owner.fetchval("SELECT count(*) FROM sessions") > 1


async def test_fifty_first_sign_ins_make_one_account(desk: Desk, owner: Connection) -> None:
    """Somebody new who signs in 50 times at once has one account, and is told of no other."""
    person = github.Person()
    flows = [await desk.come_back(person) for _ in range(50)]
    answers = await at_once(50, lambda index: desk.finish(*flows[index]))
    assert [answer for answer in answers if isinstance(answer, Refusal)] == []
    assert sum(registered for _, _, registered in answers) == 1
    assert len({user.id for _, user, _ in answers}) == 1
    assert await owner.fetchval("SELECT count(*) FROM auth_outbox") == 1


async def a_member(owner: Connection, clock: FakeClock) -> User:
    """A user whose address is verified."""
    user = await make_user(owner, clock)
    await verify_address(owner, user.id)
    return user


async def fifty_link(desk: Desk, owner: Connection, clock: FakeClock) -> list[Any]:
    """Fifty users link one identity at once."""
    person = github.Person()
    users = [await a_member(owner, clock) for _ in range(50)]
    return await at_once(50, lambda index: desk.link(users[index].id, person))


@pytest.mark.usefixtures("every_connection")
async def test_fifty_that_link_one_identity(
    desk: Desk, owner: Connection, clock: FakeClock
) -> None:
    """One of 50 users gets it; it is no way into the accounts of the others."""
    answers = await fifty_link(desk, owner, clock)
    assert sum(isinstance(answer, Identity) for answer in answers) == 1
    assert sum(isinstance(answer, IdentityAlreadyLinked) for answer in answers) == 49


@pytest.mark.usefixtures("every_connection")
async def test_looking_before_linking_would_link_several(
    desk: Desk, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the unique constraint one identity opens several accounts."""
    await owner.execute("ALTER TABLE oauth_identities DROP CONSTRAINT oauth_identities_subject_key")
    await owner.execute("DROP INDEX users_oauth_key")

    async def look_first(
        conn: Connection, identity_id: UUID, user_id: UUID, proof: Proof, now: datetime
    ) -> Identity:
        if await store_oauth.owner_of_identity(conn, proof):
            raise IdentityAlreadyLinked
        await asyncio.sleep(0.5)
        await conn.execute(
            "INSERT INTO oauth_identities"
            " (id, user_id, provider, subject, created_at, last_used_at)"
            " VALUES ($1, $2, $3, $4, $5, $5)",
            identity_id,
            user_id,
            proof.provider,
            proof.subject,
            now,
        )
        return Identity(identity_id, user_id, proof.provider, proof.subject, "", now, now)

    monkeypatch.setattr(store_oauth, "insert_identity", look_first)
    answers = await fifty_link(desk, owner, clock)
    assert sum(isinstance(answer, Identity) for answer in answers) > 1


async def fifty_unlink(desk: Desk, owner: Connection) -> list[Any]:
    """Somebody without a password takes each of 50 identities off, all at once."""
    user = await desk.sign_in(github.Person())
    now = desk.clock.now()
    for _ in range(49):
        proof = Proof("github", str(github.Person().id), "", email_verified=False)
        await store_oauth.insert_identity(owner, uuid7(now), user.id, proof, now)
    linked = await desk.identities(user.id)
    caller = desk.caller(user.id)
    return await at_once(50, lambda index: desk.oauth.unlink_identity(caller, linked[index].id))


@pytest.mark.usefixtures("every_connection")
async def test_the_last_way_in_stays(desk: Desk, owner: Connection) -> None:
    """However many identities are taken off at once, one is left to sign in with."""
    answers = await fifty_unlink(desk, owner)
    assert sum(isinstance(answer, LastSignInMethod) for answer in answers) == 1
    assert await owner.fetchval("SELECT count(*) FROM oauth_identities") == 1
    named = await owner.fetchval(
        "SELECT oauth_id = subject FROM users u JOIN oauth_identities i ON i.user_id = u.id"
    )
    assert named


@pytest.mark.usefixtures("every_connection")
async def test_without_the_lock_nobody_could_sign_in(
    desk: Desk, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: calls that do not wait for each other take the last one off."""
    monkeypatch.setattr(store_users, "lock_user", store_users.get_user)
    may_sign_in = store_oauth.can_sign_in

    async def slowly(conn: Connection, user_id: UUID) -> bool:
        found = await may_sign_in(conn, user_id)
        await asyncio.sleep(0.2)
        return found

    async def all_off() -> bool:
        return not any(isinstance(answer, Refusal) for answer in await fifty_unlink(desk, owner))

    monkeypatch.setattr(store_oauth, "can_sign_in", slowly)
    assert await sooner_or_later(all_off, rounds=10)


async def test_users_name_their_first_identity(
    desk: Desk, owner: Connection, clock: FakeClock
) -> None:
    """users.oauth_provider and oauth_id follow what is linked and taken off."""

    async def named() -> tuple[Any, ...]:
        query = "SELECT oauth_provider, oauth_id FROM users WHERE id = $1"
        return tuple(await owner.fetchrow(query, user.id))

    user = await a_member(owner, clock)
    assert await named() == (None, None)
    people = [github.Person(), github.Person()]
    linked = []
    for person in people:
        linked.append(await desk.link(user.id, person))
        clock.advance(seconds=1)
        assert await named() == ("github", str(people[0].id))
    await desk.oauth.unlink_identity(desk.caller(user.id), linked[0].id)
    assert "sign_in_methods_changed" in await templates(owner, user.email)
    assert await named() == ("github", str(people[1].id))
    # A password is left to sign in with.
    await desk.oauth.unlink_identity(desk.caller(user.id), linked[1].id)
    assert await named() == (None, None)


async def test_the_last_identity_of_an_account_without_a_password(desk: Desk) -> None:
    """It is refused by reason, and the identity stays."""
    user = await desk.sign_in(github.Person())
    (identity,) = await desk.identities(user.id)
    unlink = desk.oauth.unlink_identity(desk.caller(user.id), identity.id)
    with pytest.raises(LastSignInMethod) as refused:
        await unlink
    assert (refused.value.code, refused.value.reason) == (
        Code.FAILED_PRECONDITION,
        "LAST_SIGN_IN_METHOD",
    )
    assert await desk.identities(user.id) == [identity]


async def test_a_flow_leaves_no_secret(desk: Desk, owner: Connection, capfd: Any) -> None:
    """Neither the client's secret nor what is derived from it is in a table or a log line."""
    flow, answer = await desk.come_back(github.Person())
    kept = await owner.fetchval("SELECT string_agg(f::text, ' ') FROM oauth_flows f")
    await desk.finish(flow, answer)
    assert await reason_of(desk.finish(flow, answer)) == "OAUTH_STATE_INVALID"
    written = capfd.readouterr()
    for secret in (flow, answer.state, answer.code, github.CLIENT_SECRET):
        assert secret not in kept + written.out + written.err


async def test_a_banned_person_is_not_let_in(desk: Desk, owner: Connection) -> None:
    """A proof of who somebody is does not yet let them in."""
    person = github.Person()
    user = await desk.sign_in(person)
    await owner.execute(
        "UPDATE users SET banned_at = $2, ban_reason = 'test' WHERE id = $1",
        user.id,
        desk.clock.now(),
    )
    assert await reason_of(desk.sign_in(person)) == "LOGIN_FAILED"
    assert await owner.fetchval("SELECT count(*) FROM sessions") == 1


async def test_github_vouches_for_the_primary_address_alone(desk: Desk, owner: Connection) -> None:
    """The public one of the profile and other verified ones are not asked."""
    person = github.Person(email="Ada@Example.com")
    assert (await desk.sign_in(person)).email == "ada@example.com"
    unverified = github.Person(verified=False)
    assert await reason_of(desk.sign_in(unverified)) == "EMAIL_NOT_VERIFIED_BY_PROVIDER"
    moved = github.Person(id=person.id, email="elsewhere@example.com", verified=False)
    assert (await desk.sign_in(moved)).email == "ada@example.com"
    assert await owner.fetchval("SELECT count(*) FROM users") == 1


async def test_what_github_does_not_accept(desk: Desk) -> None:
    """An unknown code, and a code of another flow, whose verifier is another."""
    flow, answer = await desk.come_back(github.Person())
    forged = Answer(answer.state, "forged", "", "")
    assert await reason_of(desk.finish(flow, forged)) == "OAUTH_CODE_INVALID"
    flow, mine = await desk.come_back(github.Person())
    stolen = Answer(mine.state, answer.code, "", "")
    assert await reason_of(desk.finish(flow, stolen)) == "OAUTH_CODE_INVALID"
    flow, answer = await desk.come_back(github.Person())
    foreign = Answer(answer.state, answer.code, "", "https://accounts.google.com")
    assert await reason_of(desk.finish(flow, foreign)) == "OAUTH_STATE_INVALID"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnone",
        b"HTTP/1.1 302 Found\r\nlocation: /user\r\ncontent-length: 0\r\n\r\n",
        github.answer(200, []),
        github.answer(200, {"access_token": 7}),
        github.answer(200, {"error": "incorrect_client_credentials"}),
        github.answer(429, {}),
        github.answer(503, {}),
        github.answer(200, {"access_token": "x" * http.MOST_BYTES}),
        b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b\x08 ",
    ],
)
async def test_answers_that_are_none(desk: Desk, sent: bytes) -> None:
    """What is late, large, redirected or of another form is a refusal to come back to."""
    desk.hub.tokens_answer = sent
    flow, answer = await desk.come_back(github.Person())
    with pytest.raises(Refusal) as refused:
        await desk.finish(flow, answer)
    assert (refused.value.code, refused.value.reason) == (
        Code.UNAVAILABLE,
        "OAUTH_PROVIDER_UNAVAILABLE",
    )
    assert desk.hub.calls == ["POST /login/oauth/access_token"]


async def test_an_answer_that_does_not_come(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that takes a connection and stays silent is as good as down."""
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.1)
    desk.hub.silent_seconds = 1.0
    assert await reason_of(desk.sign_in(github.Person())) == "OAUTH_PROVIDER_UNAVAILABLE"


@pytest.mark.parametrize(
    ("provider", "redirect_uri", "reason"),
    [
        ("gitlab", github.REDIRECT_URI, "OAUTH_PROVIDER_UNKNOWN"),
        ("github", f"{github.REDIRECT_URI}/", "INVALID_REQUEST"),
        ("github", "https://evil.example/", "INVALID_REQUEST"),
    ],
)
async def test_only_what_is_configured_is_started(
    desk: Desk, owner: Connection, provider: str, redirect_uri: str, reason: str
) -> None:
    """Provider and redirect address are compared character for character."""
    start = desk.oauth.start_sign_in(provider=provider, redirect_uri=redirect_uri)
    assert await reason_of(start) == reason
    assert await owner.fetchval("SELECT count(*) FROM oauth_flows") == 0


async def test_what_is_over_is_swept(desk: Desk, owner: Connection, clock: FakeClock) -> None:
    """Flows are deleted after they ended, and not before."""
    await desk.start()
    clock.advance(minutes=10)
    await sweep(desk.auth.room.database, clock)
    assert await owner.fetchval("SELECT count(*) FROM oauth_flows") == 1
    clock.advance(seconds=1)
    await sweep(desk.auth.room.database, clock)
    assert await owner.fetchval("SELECT count(*) FROM oauth_flows") == 0


async def test_an_identity_of_another_user_is_not_used(conn: Connection, clock: FakeClock) -> None:
    """The statements name the user they are for, so that what moved meanwhile is not used."""
    user, other = await make_user(conn, clock), await make_user(conn, clock)
    proof = Proof("github", "7", "", email_verified=False)
    identity = await store_oauth.insert_identity(conn, uuid4(), user.id, proof, clock.now())
    assert not await store_oauth.use_identity(conn, other.id, proof, clock.now())
    assert not await store_oauth.delete_identity(conn, other.id, identity.id)
    with pytest.raises(IdentityAlreadyLinked):
        await store_oauth.insert_identity(conn, uuid4(), other.id, proof, clock.now())
    assert await store_oauth.owner_of_identity(conn, proof) == user.id
