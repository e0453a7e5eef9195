"""OAuthService against a certified OpenID provider, through real channels on both transports."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import jwt
import pytest
from finity.auth.v1 import auth_pb2, oauth_pb2, oauth_pb2_grpc
from finity.usage.v1 import usage_pb2
from grpc import StatusCode, aio

from chassis.postgres import Connection
from suite.ports import free_port
from tests.factories import answers_with, connect_owner, eventually
from tests.fakes import FakeClock
from tests.oidc.provider import REDIRECT_URI, OpenIdProvider, serving, visit
from tests.owner import verify_address
from tests.running import PASSWORD, House, Metadata, Person, bearer, info_of, open_house, refusal_of

STATE_INVALID = (StatusCode.UNAUTHENTICATED, "OAUTH_STATE_INVALID")
UNAVAILABLE = (StatusCode.UNAVAILABLE, "OAUTH_PROVIDER_UNAVAILABLE")


@dataclass(frozen=True, slots=True)
class Site:
    """The house with the provider's clients, and what a client of it does."""

    house: House
    oauth: oauth_pb2_grpc.OAuthServiceStub

    async def start(self, provider: str = "finity") -> oauth_pb2.StartSignInResponse:
        request = oauth_pb2.StartSignInRequest(provider=provider, redirect_uri=REDIRECT_URI)
        return await self.oauth.StartSignIn(request)

    async def finish(
        self, flow: str, came: dict[str, str], **other: Any
    ) -> oauth_pb2.FinishSignInResponse:
        return await self.oauth.FinishSignIn(
            oauth_pb2.FinishSignInRequest(flow=flow, **answer(came), **other)
        )

    async def sign_in(self, name: str, provider: str = "finity") -> oauth_pb2.FinishSignInResponse:
        """Signs in from the start to the end."""
        started = await self.start(provider)
        return await self.finish(started.flow, await visit(started.authorization_url, name))

    async def start_linking(self, me: Metadata) -> oauth_pb2.StartLinkingResponse:
        request = oauth_pb2.StartLinkingRequest(provider="finity", redirect_uri=REDIRECT_URI)
        return await self.oauth.StartLinking(request, metadata=me)

    async def finish_linking(
        self, me: Metadata, flow: str, came: dict[str, str]
    ) -> oauth_pb2.Identity:
        request = oauth_pb2.FinishLinkingRequest(flow=flow, **answer(came))
        return (await self.oauth.FinishLinking(request, metadata=me)).identity

    async def link(self, me: Metadata, name: str) -> oauth_pb2.Identity:
        """Links from the start to the end."""
        started = await self.start_linking(me)
        came = await visit(started.authorization_url, name)
        return await self.finish_linking(me, started.flow, came)


def answer(came: dict[str, str]) -> dict[str, str]:
    """What came back to the redirect address, as the requests name it."""
    names = {"code": "authorization_code", "error": "error", "state": "state", "iss": "iss"}
    return {names[name]: value for name, value in came.items() if name in names}


def somebody() -> str:
    return f"p-{secrets.token_hex(6)}"


async def refusal(call: Awaitable[Any]) -> tuple[StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return refusal_of(caught.value)


@pytest.fixture(scope="module")
def cache(request: pytest.FixtureRequest) -> Path:
    return request.config.cache.mkdir("identity-provider")


@pytest.fixture(scope="module")
def idp(cache: Path) -> Iterator[OpenIdProvider]:
    with serving(cache) as provider:
        yield provider


@pytest.fixture
async def site(
    database_url: str, redis_url: str, transport: str, clock: FakeClock, idp: OpenIdProvider
) -> AsyncIterator[Site]:
    async with open_house(
        database_url, redis_url, transport, clock, oauth_providers=idp.settings()
    ) as house:
        yield Site(house, oauth_pb2_grpc.OAuthServiceStub(house.auth_channel))


async def test_somebody_new_gets_an_account(
    site: Site, owner: Connection, clock: FakeClock
) -> None:
    """The account has the verified address and no password, and usage hears of it."""
    name = somebody()
    signed = await site.sign_in(name)
    assert signed.registered
    assert (signed.user.email, signed.user.email_verified) == (f"{name}@example.com", True)
    row = await owner.fetchrow(
        "SELECT password_hash, oauth_provider, oauth_id, email_verified_at FROM users"
    )
    assert tuple(row) == (None, "finity", name, clock.now())
    me = bearer(signed.tokens.access_token)
    claims = jwt.decode(signed.tokens.access_token, options={"verify_signature": False})
    assert (claims["amr"], claims["acr"]) == (["fed"], "aal1")
    balance = usage_pb2.GetBalanceRequest(user_id="me")
    await eventually(lambda: answers_with(site.house.usage.GetBalance(balance, metadata=me), ""))


async def test_the_second_sign_in_finds_the_account(site: Site, owner: Connection) -> None:
    """The same person is the same user, in a session of its own."""
    name = somebody()
    first, second = await site.sign_in(name), await site.sign_in(name)
    assert (first.registered, second.registered) == (True, False)
    assert first.user.user_id == second.user.user_id
    assert first.tokens.session_id != second.tokens.session_id
    assert await owner.fetchval("SELECT count(*) FROM oauth_identities") == 1


@pytest.mark.parametrize("client", ["finity-post", "finity-public"])
async def test_every_kind_of_client_signs_in(site: Site, client: str) -> None:
    """The secret in the form with ES256, and none at all with EdDSA; Basic with RS256 is above."""
    signed = await site.sign_in(somebody(), client)
    assert signed.registered


async def test_tokens_signed_with_the_client_s_secret_are_refused(site: Site) -> None:
    """HS256 is no proof of the provider: whoever knows the secret could have signed."""
    assert await refusal(site.sign_in(somebody(), "finity-shared")) == (
        StatusCode.UNAUTHENTICATED,
        "OAUTH_ID_TOKEN_INVALID",
    )


async def test_an_answer_needs_the_state_of_its_flow(site: Site) -> None:
    """Another state is refused and leaves the flow to whoever has the right one."""
    started, other = await site.start(), await site.start()
    came = await visit(started.authorization_url, somebody())
    foreign = dict(parse_qsl(urlsplit(other.authorization_url).query))["state"]
    for state in (foreign, "forged", came["state"][:-1]):
        assert await refusal(site.finish(started.flow, came | {"state": state})) == STATE_INVALID
    assert await refusal(site.finish(other.flow, came)) == STATE_INVALID
    assert await refusal(site.finish("A" * 43, came)) == STATE_INVALID
    assert (await site.finish(started.flow, came)).registered


@pytest.mark.parametrize("iss", ["", "https://accounts.google.com", "http://127.0.0.1"])
async def test_an_answer_of_another_issuer_is_refused(site: Site, iss: str) -> None:
    """The provider announces the parameter: another one, or none, is somebody else's answer."""
    started = await site.start()
    came = await visit(started.authorization_url, somebody())
    assert came["iss"]
    assert await refusal(site.finish(started.flow, came | {"iss": iss})) == STATE_INVALID


async def test_a_token_of_another_nonce_is_refused(site: Site, owner: Connection) -> None:
    """Whoever has a token issued for another flow cannot sign in with it."""
    started = await site.start()
    parts = urlsplit(started.authorization_url)
    query = dict(parse_qsl(parts.query)) | {"nonce": "another"}
    came = await visit(urlunsplit(parts._replace(query=urlencode(query))), somebody())
    assert await refusal(site.finish(started.flow, came)) == (
        StatusCode.UNAUTHENTICATED,
        "OAUTH_ID_TOKEN_INVALID",
    )
    assert await owner.fetchval("SELECT count(*) FROM users") == 0


async def test_a_code_works_once_and_in_its_own_flow(site: Site, owner: Connection) -> None:
    """A repeat finds the flow used; a stolen code in another flow has the wrong verifier."""
    started, mine = await site.start(), await site.start()
    came = await visit(started.authorization_url, somebody())
    own = await visit(mine.authorization_url, somebody())
    injected = own | {"code": came["code"]}
    code_invalid = (StatusCode.UNAUTHENTICATED, "OAUTH_CODE_INVALID")
    assert await refusal(site.finish(mine.flow, injected)) == code_invalid
    started = await site.start()
    came = await visit(started.authorization_url, somebody())
    await site.finish(started.flow, came)
    assert await refusal(site.finish(started.flow, came)) == STATE_INVALID
    again = await site.start()
    replayed = await visit(again.authorization_url, somebody()) | {"code": came["code"]}
    assert await refusal(site.finish(again.flow, replayed)) == code_invalid
    assert await owner.fetchval("SELECT count(*) FROM sessions") == 1


async def test_who_refuses_consent_is_not_signed_in(site: Site) -> None:
    """The refusal carries the provider's word, and the flow is over."""
    started = await site.start()
    came = await visit(started.authorization_url, somebody(), consent=False)
    assert came["error"] == "access_denied"
    with pytest.raises(aio.AioRpcError) as caught:
        await site.finish(started.flow, came)
    assert refusal_of(caught.value) == (StatusCode.FAILED_PRECONDITION, "OAUTH_DENIED")
    assert info_of(caught.value).metadata["error"] == "access_denied"
    assert await refusal(site.finish(started.flow, came)) == STATE_INVALID


async def test_a_provider_that_says_it_is_ill_is_unavailable(site: Site) -> None:
    """server_error is no refusal by the person."""
    started = await site.start()
    came = await visit(started.authorization_url, somebody(), consent=False)
    ill = came | {"error": "server_error"}
    assert await refusal(site.finish(started.flow, ill)) == UNAVAILABLE


async def test_a_flow_lives_ten_minutes(site: Site, clock: FakeClock) -> None:
    """An answer that comes later is refused."""
    started = await site.start()
    came = await visit(started.authorization_url, somebody())
    clock.advance(minutes=10)
    assert await refusal(site.finish(started.flow, came)) == STATE_INVALID


async def test_an_unverified_address_makes_no_account(site: Site, owner: Connection) -> None:
    """Whoever writes an address into a profile does not get an account by it."""
    assert await refusal(site.sign_in(f"unverified-{somebody()}")) == (
        StatusCode.FAILED_PRECONDITION,
        "EMAIL_NOT_VERIFIED_BY_PROVIDER",
    )
    assert await owner.fetchval("SELECT count(*) FROM users") == 0


async def a_member(site: Site, name: str) -> Person:
    """Somebody who registered with a password and the address the provider has."""
    email = f"{name}@example.com"
    await site.house.auth.Register(auth_pb2.RegisterRequest(email=email, password=PASSWORD))
    login = await site.house.auth.Login(auth_pb2.LoginRequest(email=email, password=PASSWORD))
    async with connect_owner(site.house.database_url) as owner:
        await verify_address(owner, login.user.user_id)
    return Person(login.user.user_id, email, login.tokens)


async def test_an_address_with_an_account_is_never_linked_by_itself(site: Site) -> None:
    """The sign-in is refused until the account's owner has proved both and linked them."""
    name = somebody()
    member = await a_member(site, name)
    assert await refusal(site.sign_in(name)) == (
        StatusCode.ALREADY_EXISTS,
        "ACCOUNT_EXISTS_LINK_REQUIRED",
    )
    identity = await site.link(member.metadata, name)
    assert (identity.provider, identity.email) == ("finity", member.email)
    signed = await site.sign_in(name)
    assert (signed.user.user_id, signed.registered) == (member.user_id, False)


async def test_linked_identities_are_listed_and_taken_off(site: Site, clock: FakeClock) -> None:
    """Any identity may be linked, whatever its address; the list is read in pages."""
    member = await site.house.person()
    names = [somebody(), f"unverified-{somebody()}", somebody()]
    linked = []
    for name in names:
        clock.advance(seconds=1)
        linked.append(await site.link(member.metadata, name))
    assert await site.link(member.metadata, names[-1]) == linked[-1]
    request = oauth_pb2.ListIdentitiesRequest(page_size=2)
    page = await site.oauth.ListIdentities(request, metadata=member.metadata)
    assert list(page.identities) == [linked[2], linked[1]]
    request.page_token = page.next_page_token
    page = await site.oauth.ListIdentities(request, metadata=member.metadata)
    assert (list(page.identities), page.next_page_token) == ([linked[0]], "")
    unlink = oauth_pb2.UnlinkIdentityRequest(identity_id=linked[0].identity_id)
    for _ in range(2):
        await site.oauth.UnlinkIdentity(unlink, metadata=member.metadata)
    assert (await site.sign_in(names[0])).user.user_id != member.user_id
    stranger = await site.house.person()
    unlink.identity_id = linked[1].identity_id
    await site.oauth.UnlinkIdentity(unlink, metadata=stranger.metadata)
    page = await site.oauth.ListIdentities(
        oauth_pb2.ListIdentitiesRequest(), metadata=member.metadata
    )
    assert list(page.identities) == [linked[2], linked[1]]


async def test_an_identity_has_one_account(site: Site) -> None:
    """Linking somebody else's identity is refused."""
    name = somebody()
    await site.sign_in(name)
    member = await site.house.person()
    assert await refusal(site.link(member.metadata, name)) == (
        StatusCode.ALREADY_EXISTS,
        "IDENTITY_ALREADY_LINKED",
    )


async def test_a_flow_is_finished_by_whoever_started_it_for_what_it_is(site: Site) -> None:
    """Nobody links what another started, and no flow serves both methods."""
    member, other = await site.house.person(), await site.house.person()
    started, name = await site.start_linking(member.metadata), somebody()
    came = await visit(started.authorization_url, name)
    for call in (
        site.finish_linking(other.metadata, started.flow, came),
        site.finish(started.flow, came),
    ):
        assert await refusal(call) == STATE_INVALID
    sign_in = await site.start()
    back = await visit(sign_in.authorization_url, name)
    call = site.finish_linking(member.metadata, sign_in.flow, back)
    assert await refusal(call) == STATE_INVALID
    assert (await site.finish_linking(member.metadata, started.flow, came)).provider == "finity"


async def test_linking_needs_a_fresh_proof(site: Site, clock: FakeClock) -> None:
    """Ten minutes after the login neither end of it, nor unlinking, is allowed."""
    member = await site.house.person()
    identity = await site.link(member.metadata, somebody())
    clock.advance(minutes=5)
    started = await site.start_linking(member.metadata)
    came = await visit(started.authorization_url, somebody())
    clock.advance(minutes=5, seconds=1)
    step_up = (StatusCode.UNAUTHENTICATED, "STEP_UP_REQUIRED")
    unlink = oauth_pb2.UnlinkIdentityRequest(identity_id=identity.identity_id)
    for call in (
        site.start_linking(member.metadata),
        site.finish_linking(member.metadata, started.flow, came),
        site.oauth.UnlinkIdentity(unlink, metadata=member.metadata),
    ):
        assert await refusal(call) == step_up


async def test_keys_that_the_provider_replaces_are_loaded(
    database_url: str, redis_url: str, clock: FakeClock, cache: Path
) -> None:
    """A token of an unknown key id loads the keys; addresses may come from userinfo alone."""
    port = free_port()
    settings = OpenIdProvider(port).settings()
    async with open_house(
        database_url, redis_url, "native", clock, oauth_providers=settings
    ) as house:
        site = Site(house, oauth_pb2_grpc.OAuthServiceStub(house.auth_channel))
        with serving(cache, port=port, userinfo=True):
            signed = await site.sign_in(somebody())
            assert signed.user.email_verified
            started = await site.start()
            came = await visit(started.authorization_url, somebody())
        assert await refusal(site.finish(started.flow, came)) == UNAVAILABLE
        with serving(cache, port=port, userinfo=True, kid="second"):
            clock.advance(seconds=31)
            signed = await site.sign_in(somebody())
            assert signed.registered


async def test_a_provider_that_is_down_is_a_refusal(
    database_url: str, redis_url: str, transport: str, clock: FakeClock, cache: Path
) -> None:
    """It comes with a delay, and once the provider is back everything works."""
    port = free_port()
    settings = OpenIdProvider(port).settings()
    async with open_house(
        database_url, redis_url, transport, clock, oauth_providers=settings
    ) as house:
        site = Site(house, oauth_pb2_grpc.OAuthServiceStub(house.auth_channel))
        refusals = await asyncio.gather(*(refusal(site.start()) for _ in range(20)))
        assert set(refusals) == {UNAVAILABLE}
        with serving(cache, port=port):
            clock.advance(seconds=6)
            assert (await site.sign_in(somebody())).registered
