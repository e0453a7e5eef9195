"""The end of an account through real channels, on both transports, as far as the usage room."""

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from finity.auth.v1 import (
    account_pb2,
    account_pb2_grpc,
    auth_pb2,
    oauth_pb2,
    oauth_pb2_grpc,
)
from finity.usage.v1 import usage_pb2
from google.protobuf import json_format
from grpc import StatusCode, aio

from chassis.postgres import Database
from services.auth.service.lifecycle import LifecycleService
from services.auth.worker import erase_due
from tests import factories, github
from tests.auth.leaving import events
from tests.factories import (
    GRACE,
    answers_with,
    connect_owner,
    eventually,
    ledger_faults,
    make_event,
    open_auth,
    to_wire,
)
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, Metadata, Person, bearer, derive, refusal_of


@pytest.fixture
def lifecycle(house: House) -> account_pb2_grpc.AccountLifecycleServiceStub:
    return account_pb2_grpc.AccountLifecycleServiceStub(house.auth_channel)


async def refusal(call: Awaitable[Any]) -> tuple[StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as refused:
        await call
    return refusal_of(refused.value)


async def log_in(house: House, person: Person) -> tuple[Metadata, auth_pb2.User]:
    request = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
    answer = await house.auth.Login(request)
    return bearer(answer.tokens.access_token), answer.user


async def test_somebody_leaves_and_returns(
    house: House, clock: FakeClock, lifecycle: account_pb2_grpc.AccountLifecycleServiceStub
) -> None:
    """The answer and every login say when the account will be erased; cancelling takes it back."""
    person = await house.person()
    delete, cancel = account_pb2.DeleteAccountRequest(), account_pb2.CancelDeletionRequest()
    pending = (await lifecycle.DeleteAccount(delete, metadata=person.metadata)).user
    lasts = pending.purge_time.ToDatetime() - pending.delete_time.ToDatetime()
    assert lasts == timedelta(days=14)
    get = auth_pb2.GetUserRequest()
    await eventually(
        lambda: answers_with(house.auth.GetUser(get, metadata=person.metadata), "TOKEN_REVOKED")
    )
    me, user = await log_in(house, person)
    assert user.purge_time == pending.purge_time
    kept = (await lifecycle.CancelDeletion(cancel, metadata=me)).user
    assert (kept.HasField("delete_time"), kept.HasField("purge_time")) == (False, False)


async def test_leaving_is_refused_by_reason(
    house: House, clock: FakeClock, lifecycle: account_pb2_grpc.AccountLifecycleServiceStub
) -> None:
    """Without a fresh proof, and for the last administrator."""
    delete = account_pb2.DeleteAccountRequest()
    person, admin = await house.person(), await house.person(role=auth_pb2.ROLE_ADMIN)
    assert await refusal(lifecycle.DeleteAccount(delete, metadata=admin.metadata)) == (
        StatusCode.FAILED_PRECONDITION,
        "LAST_ADMIN",
    )
    clock.advance(minutes=10, seconds=1)
    assert await refusal(lifecycle.DeleteAccount(delete, metadata=person.metadata)) == (
        StatusCode.UNAUTHENTICATED,
        "STEP_UP_REQUIRED",
    )


async def test_reading_data_needs_a_fresh_proof(
    house: House, lifecycle: account_pb2_grpc.AccountLifecycleServiceStub, clock: FakeClock
) -> None:
    """Eleven minutes after the login it is STEP_UP_REQUIRED, to the user and to administrators."""
    person, admin = await house.person(), await house.person(role=auth_pb2.ROLE_ADMIN)
    clock.advance(minutes=11)
    request = account_pb2.ExportMyDataRequest(user_id=person.user_id)
    for reader in (person, admin):
        assert await refusal(lifecycle.ExportMyData(request, metadata=reader.metadata)) == (
            StatusCode.UNAUTHENTICATED,
            "STEP_UP_REQUIRED",
        )


async def test_a_person_reads_its_data(
    house: House, lifecycle: account_pb2_grpc.AccountLifecycleServiceStub
) -> None:
    """One's own by anybody, somebody's by an administrator, and nobody's is USER_NOT_FOUND."""
    person, admin = await house.person(), await house.person(role=auth_pb2.ROLE_ADMIN)
    own = account_pb2.ExportMyDataRequest()
    export = await lifecycle.ExportMyData(own, metadata=person.metadata)
    assert export.filename.startswith(f"finity-{person.user_id}-")
    data = json_format.MessageToDict(export.data)
    assert data["account"]["email"] == person.email
    assert [session["id"] for session in data["sessions"]] == [person.tokens.session_id]
    named = account_pb2.ExportMyDataRequest(user_id=person.user_id)
    read = await lifecycle.ExportMyData(named, metadata=admin.metadata)
    assert json_format.MessageToDict(read.data)["account"]["email"] == person.email
    again = await lifecycle.ExportMyData(own, metadata=person.metadata)
    (entry,) = json_format.MessageToDict(again.data)["admin_log"]
    assert entry["action"] == "export_user_data"
    nobody = account_pb2.ExportMyDataRequest(user_id=str(UUID(int=7)))
    assert await refusal(lifecycle.ExportMyData(nobody, metadata=admin.metadata)) == (
        StatusCode.NOT_FOUND,
        "USER_NOT_FOUND",
    )


async def test_a_registration_takes_an_invitation(house: House) -> None:
    """A token of another shape is INVALID_REQUEST; one of the right shape is never refused."""
    for number, (token, code) in enumerate(
        [("t" * 16, ""), ("A-z_0" * 12, ""), ("t" * 15, "INVALID_REQUEST"), ("t t" * 8, "x")]
    ):
        request = auth_pb2.RegisterRequest(
            email=f"ada{number}@example.com", password=PASSWORD, invite_token=token
        )
        if code:
            assert await refusal(house.auth.Register(request)) == (
                StatusCode.INVALID_ARGUMENT,
                "INVALID_REQUEST",
            )
        else:
            await house.auth.Register(request)


async def test_a_sign_up_at_a_provider_takes_an_invitation(house: House) -> None:
    """The announcement of the new account carries it; a later sign-in announces nobody."""
    oauth, person = oauth_pb2_grpc.OAuthServiceStub(house.auth_channel), github.Person()

    async def sign_in(token: str) -> oauth_pb2.FinishSignInResponse:
        start = oauth_pb2.StartSignInRequest(provider="github", redirect_uri=github.REDIRECT_URI)
        started = await oauth.StartSignIn(start)
        code, state = github.consent(started.authorization_url, person)
        finish = oauth_pb2.FinishSignInRequest(
            flow=started.flow, state=state, authorization_code=code, invite_token=token
        )
        return await oauth.FinishSignIn(finish)

    assert await refusal(sign_in("t" * 15)) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    first, second = await sign_in("A-z_0" * 12), await sign_in("t" * 16)
    assert (first.registered, second.registered) == (True, False)
    async with connect_owner(house.database_url) as owner:
        announced = await events(owner, "user_registered")
    assert announced == [{"user_id": first.user.user_id, "invite_token": "A-z_0" * 12}]


async def test_from_leaving_to_a_closed_account(
    house: House,
    auth_database: Database,
    clock: FakeClock,
    lifecycle: account_pb2_grpc.AccountLifecycleServiceStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Delete, let the grace pass, sweep: usage is told and spends nothing any more."""
    person = await house.person(credits=50)
    event = to_wire(make_event(UUID(person.user_id), clock.now(), credits=20))
    record = usage_pb2.RecordUsageRequest(event=event)
    await house.usage.RecordUsage(record, metadata=house.service)
    delete = account_pb2.DeleteAccountRequest()
    await lifecycle.DeleteAccount(delete, metadata=person.metadata)
    clock.advance(days=GRACE.days)
    # Another replica, with the house's secret, sweeps; the house delivers what it wrote.
    monkeypatch.setattr(factories, "SEALING_SECRET", derive("signing-keys"))
    async with open_auth(auth_database, clock) as replica:
        assert await erase_due(LifecycleService(replica.room)) == 1
    balance = usage_pb2.GetBalanceRequest(user_id=person.user_id)

    async def closed() -> bool:
        answer = await house.usage.GetBalance(balance, metadata=house.service)
        return answer.balance.HasField("close_time")

    await eventually(closed)
    again = to_wire(make_event(UUID(person.user_id), clock.now()))
    late = house.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(event=again), metadata=house.service
    )
    assert await refusal(late) == (StatusCode.FAILED_PRECONDITION, "ACCOUNT_CLOSED")
    login = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
    assert await refusal(house.auth.Login(login)) == (
        StatusCode.UNAUTHENTICATED,
        "LOGIN_FAILED",
    )
    register = auth_pb2.RegisterRequest(email=person.email, password=PASSWORD)
    assert (await house.auth.Register(register)).user.user_id != person.user_id
    async with connect_owner(house.database_url) as conn:
        assert await ledger_faults(conn) == []
