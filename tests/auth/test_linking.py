"""Linking an identity: what happens while the provider is asked, and who is told."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from finity.auth.v1 import oauth_pb2, oauth_pb2_grpc
from grpc import StatusCode

from chassis.errors import Refusal
from chassis.postgres import Connection
from services.auth.domain.users import User
from tests import github
from tests.auth.leaving import mails
from tests.auth.test_mfa_rpc import refusal
from tests.auth.test_oauth import Desk, a_member, answered, desk
from tests.chassis.waiting import until
from tests.factories import connect_owner
from tests.fakes import FakeClock
from tests.running import House

__all__ = ["desk"]

BAN = "UPDATE users SET banned_at = now(), ban_reason = 'test' WHERE id = $1"
ERASE = (
    "UPDATE users SET deletion_requested_at = now(), erasure_due_at = now(), erased_at = now(),"
    " password_hash = NULL WHERE id = $1"
)
LOG_OUT = (
    "UPDATE sessions SET ended_at = now(), end_reason = 'logout', ended_by = 'test'"
    " WHERE user_id = $1"
)
# What becomes of somebody while the provider thinks: the refusal, and what it says.
MEANWHILE: dict[str, tuple[str, str, dict[str, str]]] = {
    "banned": (BAN, "USER_NOT_ACTIVE", {"state": "banned"}),
    "erased": (ERASE, "USER_NOT_ACTIVE", {"state": "erased"}),
    "logged out": (LOG_OUT, "SESSION_ENDED", {"end_reason": "logout"}),
    "swept": ("DELETE FROM sessions WHERE user_id = $1", "SESSION_ENDED", {"end_reason": ""}),
    "given a factor": (
        "UPDATE users SET mfa_enabled_at = now() WHERE id = $1",
        "STEP_UP_REQUIRED",
        {"acr_values": "aal2", "max_age": "600"},
    ),
}


async def told(owner: Connection, user: User) -> list[str]:
    return [template for template, to in await mails(owner) if to == user.email]


async def test_the_account_is_told_once(desk: Desk, owner: Connection, clock: FakeClock) -> None:
    """By mail, in the transaction that links; linking the same identity again says nothing."""
    user, person = await a_member(owner, clock), github.Person()
    await desk.link(user.id, person)
    assert await owner.fetchval(
        "SELECT o.xmin::text = i.xmin::text FROM auth_outbox o, oauth_identities i"
        " WHERE o.topic = 'mail'"
    )
    await desk.link(user.id, person)
    assert await told(owner, user) == ["oauth_linked"]
    assert await owner.fetchval("SELECT count(*) FROM oauth_identities") == 1


@pytest.mark.parametrize("what", MEANWHILE)
async def test_who_is_put_out_meanwhile_links_nothing(
    desk: Desk, owner: Connection, clock: FakeClock, what: str
) -> None:
    """The provider takes its time; account and session are looked at again when it is done."""
    change, reason, metadata = MEANWHILE[what]
    user = await a_member(owner, clock)
    caller = await desk.present(user.id)
    started = await desk.oauth.start_linking(
        caller, provider="github", redirect_uri=github.REDIRECT_URI
    )
    desk.hub.silent_seconds = 0.5
    answer = answered(started, github.Person())
    finish: Any = desk.oauth.finish_linking(caller, flow=started.flow, answer=answer)
    asked = asyncio.ensure_future(finish)
    await until(lambda: bool(desk.hub.calls))
    await owner.execute(change, user.id)
    with pytest.raises(Refusal) as refused:
        await asked
    assert (refused.value.reason, refused.value.metadata) == (reason, metadata)
    assert await owner.fetchval("SELECT count(*) FROM oauth_identities") == 0
    assert await told(owner, user) == []


async def test_a_slow_provider_makes_no_proof_older(
    desk: Desk, owner: Connection, clock: FakeClock
) -> None:
    """What was fresh when the call came is fresh enough when the provider has answered."""
    user = await a_member(owner, clock)
    caller = await desk.present(user.id)
    clock.advance(minutes=9, seconds=59)
    started = await desk.oauth.start_linking(
        caller, provider="github", redirect_uri=github.REDIRECT_URI
    )
    desk.hub.silent_seconds = 0.2
    answer = answered(started, github.Person())
    finish: Any = desk.oauth.finish_linking(caller, flow=started.flow, answer=answer)
    asked = asyncio.ensure_future(finish)
    await until(lambda: bool(desk.hub.calls))
    clock.advance(seconds=2)
    assert (await asked).user_id == user.id


async def test_who_is_put_out_links_nothing_on_the_wire(house: House) -> None:
    """USER_NOT_ACTIVE for who is banned, SESSION_ENDED for who was logged out elsewhere."""
    stub = oauth_pb2_grpc.OAuthServiceStub(house.auth_channel)
    start = oauth_pb2.StartLinkingRequest(provider="github", redirect_uri=github.REDIRECT_URI)
    for change, expected in (
        (BAN, (StatusCode.FAILED_PRECONDITION, "USER_NOT_ACTIVE")),
        (LOG_OUT, (StatusCode.UNAUTHENTICATED, "SESSION_ENDED")),
    ):
        person = await house.person()
        started = await stub.StartLinking(start, metadata=person.metadata)
        code, state = github.consent(started.authorization_url, github.Person())
        async with connect_owner(house.database_url) as owner:
            # Behind the room's back, as if no word of it had come here yet.
            await owner.execute(change, UUID(person.user_id))
        finish = oauth_pb2.FinishLinkingRequest(
            flow=started.flow, authorization_code=code, state=state
        )
        assert await refusal(stub.FinishLinking(finish, metadata=person.metadata)) == expected
