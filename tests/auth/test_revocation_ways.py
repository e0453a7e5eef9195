"""Every way to end an access token reaches the other rooms, with Redis and without."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import pytest
from finity.auth.v1 import (
    account_pb2,
    account_pb2_grpc,
    admin_pb2,
    admin_pb2_grpc,
    auth_pb2,
    email_pb2,
    email_pb2_grpc,
    mfa_pb2,
    mfa_pb2_grpc,
    password_pb2,
    password_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from finity.usage.v1 import usage_pb2

from chassis import revocations, wakeups
from services.auth.domain import one_time
from services.auth.service import revocations as feeds
from suite.valkey import EmbeddedValkey
from tests.factories import answers_with, connect_owner, eventually
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, Person, bearer, derive, open_house

NEW_PASSWORD = "another horse battery"
# After so long a revocation is taken for lost; how soon one comes is measured by
# benchmarks/revocations.py.
LOST_SECONDS = 30.0
NEVER = 3600.0
# What a poll and its answer may take.
MOMENT = 0.5
# How an administrator or a person ends a person's token: the house, the administrator, the person.
Way: TypeAlias = Callable[[House, Person, Person], Awaitable[Any]]


async def log_out(house: House, _: Person, person: Person) -> None:
    await house.auth.Logout(auth_pb2.LogoutRequest(), metadata=person.metadata)


async def revoke_token(house: House, _: Person, person: Person) -> None:
    request = auth_pb2.RevokeTokenRequest(refresh_token=person.tokens.refresh_token)
    await house.auth.RevokeToken(request)


async def ban(house: House, admin: Person, person: Person) -> None:
    request = admin_pb2.BanUserRequest(user_id=person.user_id, reason="spam")
    stub = admin_pb2_grpc.AdminServiceStub(house.auth_channel)
    await stub.BanUser(request, metadata=admin.metadata)


async def change_role(house: House, _: Person, person: Person) -> None:
    request = auth_pb2.SetRoleRequest(user_id=person.user_id, role=auth_pb2.ROLE_PRO, reason="paid")
    await house.auth.SetRole(request, metadata=house.service)


async def reset_password(house: House, _: Person, person: Person) -> None:
    stub = email_pb2_grpc.EmailServiceStub(house.auth_channel)
    await stub.RequestPasswordReset(email_pb2.RequestPasswordResetRequest(email=person.email))
    async with connect_owner(house.database_url) as owner:
        row_id = await owner.fetchval(
            "SELECT id FROM reset_requests WHERE user_id = $1", UUID(person.user_id)
        )
    secret = one_time.secret_of(derive(one_time.PURPOSE), row_id)
    await stub.ResetPassword(
        email_pb2.ResetPasswordRequest(secret=secret, new_password=NEW_PASSWORD)
    )


async def change_password(house: House, _: Person, person: Person) -> None:
    request = password_pb2.ChangePasswordRequest(
        current_password=PASSWORD, new_password=NEW_PASSWORD
    )
    stub = password_pb2_grpc.PasswordServiceStub(house.auth_channel)
    await stub.ChangePassword(request, metadata=person.metadata)


async def reset_mfa(house: House, admin: Person, person: Person) -> None:
    request = mfa_pb2.ResetMfaRequest(user_id=person.user_id, reason="lost phone")
    stub = mfa_pb2_grpc.MfaServiceStub(house.auth_channel)
    await stub.ResetMfa(request, metadata=admin.metadata)


async def delete_account(house: House, _: Person, person: Person) -> None:
    stub = account_pb2_grpc.AccountLifecycleServiceStub(house.auth_channel)
    await stub.DeleteAccount(account_pb2.DeleteAccountRequest(), metadata=person.metadata)


async def revoke_own_session(house: House, _: Person, person: Person) -> None:
    request = session_pb2.RevokeSessionRequest(session_id="current")
    stub = session_pb2_grpc.SessionServiceStub(house.auth_channel)
    await stub.RevokeSession(request, metadata=person.metadata)


async def revoke_a_users_session(house: House, admin: Person, person: Person) -> None:
    request = session_pb2.RevokeSessionRequest(
        user_id=person.user_id, session_id=person.tokens.session_id, reason="stolen"
    )
    stub = session_pb2_grpc.SessionServiceStub(house.auth_channel)
    await stub.RevokeSession(request, metadata=admin.metadata)


async def revoke_other_sessions(house: House, _: Person, person: Person) -> None:
    login = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
    here = (await house.auth.Login(login)).tokens
    stub = session_pb2_grpc.SessionServiceStub(house.auth_channel)
    await stub.RevokeOtherSessions(
        session_pb2.RevokeOtherSessionsRequest(), metadata=bearer(here.access_token)
    )


async def revoke_all_sessions(house: House, admin: Person, person: Person) -> None:
    request = admin_pb2.RevokeUserSessionsRequest(user_id=person.user_id, reason="stolen")
    stub = admin_pb2_grpc.AdminServiceStub(house.auth_channel)
    await stub.RevokeUserSessions(request, metadata=admin.metadata)


WAYS: Mapping[str, Way] = {
    "Logout": log_out,
    "RevokeToken": revoke_token,
    "BanUser": ban,
    "SetRole": change_role,
    "ResetPassword": reset_password,
    "ChangePassword": change_password,
    "ResetMfa": reset_mfa,
    "DeleteAccount": delete_account,
    "RevokeSession of one's own": revoke_own_session,
    "RevokeSession of a user's": revoke_a_users_session,
    "RevokeOtherSessions": revoke_other_sessions,
    "RevokeUserSessions": revoke_all_sessions,
}


def balance(house: House, person: Person) -> Awaitable[usage_pb2.GetBalanceResponse]:
    """Asks another room than auth, whose verifier has to know."""
    request = usage_pb2.GetBalanceRequest()
    answer: Awaitable[usage_pb2.GetBalanceResponse] = house.usage.GetBalance(
        request, metadata=person.metadata
    )
    return answer


async def is_refused(house: House, person: Person) -> bool:
    """Tells whether the other room comes to answer TOKEN_REVOKED."""
    with contextlib.suppress(TimeoutError):
        await eventually(
            lambda: answers_with(balance(house, person), "TOKEN_REVOKED"), seconds=LOST_SECONDS
        )
        return True
    return False


async def all_lost(replicas: Sequence[House], people: Mapping[str, Person]) -> list[str]:
    """Returns the ways whose person is still known to the other room of some replica."""
    return [
        name
        for name, person in people.items()
        if not all([await is_refused(replica, person) for replica in replicas])
    ]


async def require_known(replicas: Sequence[House], people: Iterable[Person]) -> None:
    for person in people:
        for replica in replicas:
            await balance(replica, person)


@contextlib.asynccontextmanager
async def two_replicas(
    database_url: str, clock: FakeClock, state_dir: Path
) -> AsyncIterator[tuple[House, House, Callable[[], None]]]:
    """Two houses on one Redis of their own, and what stops it."""
    folder = state_dir / f"redis-{uuid4().hex[:8]}"
    folder.mkdir(mode=0o755)
    redis = EmbeddedValkey(folder)
    redis.start()
    with contextlib.ExitStack() as running:
        running.callback(redis.stop)
        async with (
            open_house(database_url, redis.url, "native", clock) as house,
            open_house(database_url, redis.url, "native", clock) as other,
        ):
            yield house, other, running.close


def test_without_redis_every_way_is_honoured_within_five_seconds() -> None:
    """By what the processes are set to; how soon it is on some machine, no test can say."""
    # Auth reads what ended elsewhere each second and streams it; that takes a moment, too.
    assert feeds.POLL_SECONDS + MOMENT < 5
    # Where the stream is broken, a list of its own asks; where it is silent, it is left first.
    assert revocations.POLL_SECONDS + MOMENT < 5
    assert revocations.SILENCE_SECONDS + revocations.PAUSE_SECONDS + MOMENT < 5
    # A stream that lives is heard more often than it is given up.
    assert feeds.POLL_SECONDS < revocations.SILENCE_SECONDS


async def test_with_redis_every_way_to_end_a_token_reaches_the_other_rooms(
    database_url: str, clock: FakeClock, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody polls here, so each way has to be announced."""
    monkeypatch.setattr(feeds, "POLL_SECONDS", NEVER)
    monkeypatch.setattr(wakeups, "ANNOUNCE_SECONDS", 20.0)
    for name in ("POLL_SECONDS", "SILENCE_SECONDS", "STALE_SECONDS"):
        monkeypatch.setattr(revocations, name, NEVER)
    async with two_replicas(database_url, clock, state_dir) as (house, other, _):
        replicas = (house, other)
        admin = await house.person(role=auth_pb2.ROLE_ADMIN)
        people = {name: await house.person() for name in WAYS}
        kept = await house.person()
        await require_known(replicas, (admin, kept, *people.values()))
        lost = []
        for name, end in WAYS.items():
            # One after the other: what one announces makes everybody read all there is.
            await end(house, admin, people[name])
            lost += await all_lost(replicas, {name: people[name]})
        assert lost == []
        await require_known(replicas, (admin, kept))


async def test_without_redis_every_way_to_end_a_token_reaches_the_other_rooms(
    database_url: str, clock: FakeClock, state_dir: Path
) -> None:
    """The usage services of both replicas refuse what ended at one auth, and nothing else."""
    async with two_replicas(database_url, clock, state_dir) as (house, other, stop_redis):
        replicas = (house, other)
        admin = await house.person(role=auth_pb2.ROLE_ADMIN)
        people = {name: await house.person() for name in WAYS}
        kept = await house.person()
        await require_known(replicas, (admin, kept, *people.values()))
        stop_redis()
        for name, end in WAYS.items():
            await end(house, admin, people[name])
        assert await all_lost(replicas, people) == []
        await require_known(replicas, (admin, kept))
