"""Acting as a user: short, told apart, not for everything, and over with its reasons."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import jwt
import pytest

from chassis.callers import Caller, Kind
from chassis.calls import Call
from chassis.errors import Code, Refusal
from chassis.idempotency import Key
from chassis.postgres import Connection
from services.auth.domain.users import Role, User
from services.auth.errors import ImpersonationDenied
from services.auth.rpc import CONTRACTS
from services.auth.service.admin import AdminService
from services.auth.service.sessions import Tokens
from services.auth.service.step_up import require_fresh
from services.auth.store import users as store_users
from tests.contracts.descriptors import methods
from tests.factories import (
    SERVICE,
    AuthRoom,
    an_address,
    at_once,
    log_in,
    make_user,
    reason_of,
    sooner_or_later,
)
from tests.fakes import FakeClock
from tests.owner import make_admin
from tests.running import PASSWORD

LASTS = timedelta(minutes=15)


@pytest.fixture
def admin(auth: AuthRoom) -> AdminService:
    return AdminService(auth.room, auth.sessions)


@pytest.fixture
async def ada(auth: AuthRoom, owner: Connection) -> Caller:
    """An administrator who has just logged in."""
    user = await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
    await make_admin(owner, user.id)
    return await logged_in(auth, user)


async def logged_in(auth: AuthRoom, user: User) -> Caller:
    tokens, _ = await log_in(auth, user.email)
    return await auth.verifier.verify(tokens.access_token)


@pytest.fixture
async def bob(auth: AuthRoom) -> User:
    return await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)


async def impersonate(
    admin: AdminService, user_id: UUID, caller: Caller, key: Key | None = None
) -> Tokens:
    tokens, _ = await admin.impersonate(
        user_id=user_id, reason="ticket 7", address="192.0.2.7", caller=caller, key=key
    )
    return tokens


async def impersonations(owner: Connection) -> int:
    """Counts the sessions in which somebody acts as somebody else, over or not."""
    return int(
        await owner.fetchval("SELECT count(*) FROM sessions WHERE impersonated_by IS NOT NULL")
    )


async def test_the_session_says_who_acts(
    *,
    auth: AuthRoom,
    admin: AdminService,
    owner: Connection,
    ada: Caller,
    bob: User,
    clock: FakeClock,
) -> None:
    """Token, session and log name both; the user's last login stays the user's."""
    tokens = await impersonate(admin, bob.id, ada)
    claims = jwt.decode(tokens.access_token, options={"verify_signature": False})
    assert claims["act"] == {"sub": str(ada.user_id)}
    assert (claims["sub"], claims["amr"], claims["role"]) == (str(bob.id), ["imp"], "free")
    caller = await auth.verifier.verify(tokens.access_token)
    assert (caller.user_id, caller.actor) == (bob.id, ada.user_id)
    row = await owner.fetchrow(
        "SELECT user_id, impersonated_by, device, host(address) AS address, amr,"
        " expires_at - created_at AS lasts FROM sessions WHERE impersonated_by IS NOT NULL"
    )
    assert dict(row) == {
        "user_id": bob.id,
        "impersonated_by": ada.user_id,
        "device": "Impersonation by an administrator",
        "address": "192.0.2.7",
        "amr": ["imp"],
        "lasts": LASTS,
    }
    entry = await owner.fetchrow("SELECT action, actor, target_user_id, details FROM admin_logs")
    details = f'{{"reason": "ticket 7", "session_id": "{tokens.session.id}"}}'
    assert tuple(entry) == ("impersonate_user", ada.key, bob.id, details)
    assert (await auth.accounts.get_user(bob.id)).last_login is None
    assert clock.now() + LASTS == tokens.session.expires_at


async def test_an_ordinary_token_names_nobody_else(auth: AuthRoom, bob: User) -> None:
    """Only an impersonator's token has the claim "act"."""
    tokens, _ = await log_in(auth, bob.email)
    assert "act" not in jwt.decode(tokens.access_token, options={"verify_signature": False})
    assert (await auth.verifier.verify(tokens.access_token)).actor is None


def test_log_lines_name_both() -> None:
    """A call's line has the caller and, where there is one, who acts as it."""
    assert CONTRACTS
    bob, ada = uuid4(), uuid4()
    caller = Caller(Kind.USER, user_id=bob, actor=ada)
    call = Call(methods("auth")[0], "r", caller, 0.0)
    assert (call.fields()["caller"], call.fields()["actor"]) == (f"user:{bob}", f"user:{ada}")
    assert "actor" not in Call(call.method, "r", replace(caller, actor=None), 0.0).fields()


async def test_no_refresh_makes_it_longer(
    auth: AuthRoom, admin: AdminService, ada: Caller, bob: User, clock: FakeClock
) -> None:
    """Tokens refreshed in the last minute end with the session, 15 minutes after its start."""
    tokens = await impersonate(admin, bob.id, ada)
    end = tokens.session.expires_at
    clock.advance(minutes=14)
    again = await auth.sessions.refresh(tokens.refresh_token)
    assert (again.session.expires_at, again.access_token_expires_at) == (end, end)
    assert (await auth.verifier.verify(again.access_token)).actor == ada.user_id
    clock.advance(minutes=1)
    with pytest.raises(Refusal) as refused:
        await auth.sessions.refresh(again.refresh_token)
    assert refused.value.metadata == {"end_reason": "expired"}
    assert await reason_of(auth.verifier.verify(again.access_token)) == "TOKEN_EXPIRED"


async def test_the_database_knows_how_long(owner: Connection, bob: User, ada: Caller) -> None:
    """No statement opens a longer one, or one of somebody as itself."""
    for who, minutes, constraint in (
        (ada.user_id, 16, "sessions_impersonation_is_short"),
        (bob.id, 15, "sessions_nobody_impersonates_itself"),
    ):
        with pytest.raises(asyncpg.CheckViolationError) as refused:
            await owner.execute(
                "INSERT INTO sessions (id, user_id, access_token, refresh_token, created_at,"
                " expires_at, refreshed_at, last_seen_at, impersonated_by)"
                " VALUES ($1, $2, 'a', 'r', now(), now() + make_interval(mins => $4), now(),"
                " now(), $3)",
                *(uuid4(), bob.id, who, minutes),
            )
        assert refused.value.constraint_name == constraint


async def test_sensitive_actions_are_not_done_in_somebody_s_name(
    auth: AuthRoom, admin: AdminService, ada: Caller, bob: User, clock: FakeClock
) -> None:
    """However fresh the session is, what needs a proof of who is there refuses an impersonator."""
    tokens = await impersonate(admin, bob.id, ada)
    caller = await auth.verifier.verify(tokens.access_token)
    with pytest.raises(ImpersonationDenied) as refused:
        require_fresh(caller, bob, clock.now())
    assert (refused.value.code, refused.value.reason) == (
        Code.PERMISSION_DENIED,
        "IMPERSONATION_DENIED",
    )
    require_fresh(replace(caller, actor=None), bob, clock.now())


async def test_it_needs_a_fresh_proof(
    admin: AdminService, owner: Connection, ada: Caller, bob: User, clock: FakeClock
) -> None:
    """Ten minutes after the login it is STEP_UP_REQUIRED, with a second factor if there is one."""
    clock.advance(minutes=10, seconds=1)
    assert await reason_of(impersonate(admin, bob.id, ada)) == "STEP_UP_REQUIRED"
    fresh = replace(ada, auth_time=clock.now())
    await owner.execute(
        "UPDATE users SET mfa_enabled_at = $2 WHERE id = $1", ada.user_id, clock.now()
    )
    assert await reason_of(impersonate(admin, bob.id, fresh)) == "STEP_UP_REQUIRED"
    await impersonate(admin, bob.id, replace(fresh, acr="aal2"))


async def test_it_is_refused_by_reason(
    *,
    auth: AuthRoom,
    admin: AdminService,
    owner: Connection,
    ada: Caller,
    bob: User,
    clock: FakeClock,
) -> None:
    """Administrators, nobody and whoever cannot log in; by somebody who was an administrator."""
    other = await make_user(owner, clock, role=Role.ADMIN)
    for target in (other.id, ada.user_id):
        with pytest.raises(Refusal) as refused:
            await impersonate(admin, target or uuid4(), ada)
        assert (refused.value.code, refused.value.reason) == (
            Code.FAILED_PRECONDITION,
            "ADMIN_NOT_IMPERSONABLE",
        )
    assert await reason_of(impersonate(admin, uuid4(), ada)) == "USER_NOT_FOUND"
    service = Caller(Kind.SERVICE, name="billing")
    assert await reason_of(impersonate(admin, bob.id, service)) == "ACCESS_DENIED"
    for change, state in (
        ("banned_at = $2, ban_reason = 'spam'", "banned"),
        (
            "banned_at = NULL, ban_reason = NULL, deletion_requested_at = $2, erasure_due_at = $2",
            "deleting",
        ),
        ("erased_at = $2, password_hash = NULL", "erased"),
    ):
        await owner.execute(f"UPDATE users SET {change} WHERE id = $1", bob.id, clock.now())  # noqa: S608
        with pytest.raises(Refusal) as refused:
            await impersonate(admin, bob.id, ada)
        assert (refused.value.reason, refused.value.metadata) == (
            "USER_NOT_ACTIVE",
            {"state": state},
        )
    await owner.execute(
        "UPDATE users SET deletion_requested_at = NULL, erased_at = NULL,"
        " erasure_due_at = NULL WHERE id = $1",
        bob.id,
    )
    assert ada.session_id
    await auth.sessions.logout(ada.session_id, by="t")
    with pytest.raises(Refusal) as refused:
        await impersonate(admin, bob.id, ada)
    assert (refused.value.reason, refused.value.metadata) == (
        "SESSION_ENDED",
        {"end_reason": "logout"},
    )
    await set_role(auth, ada, ada.user_id, Role.FREE)
    assert await reason_of(impersonate(admin, bob.id, ada)) == "ACCESS_DENIED"
    assert await impersonations(owner) == 0


async def set_role(auth: AuthRoom, actor: Caller, user_id: UUID | None, role: Role) -> object:
    assert user_id
    return await auth.accounts.set_role(
        user_id=user_id, role=role, reason="t", actor=actor, key=None
    )


async def test_introspection_says_who_acts(
    auth: AuthRoom, admin: AdminService, ada: Caller, bob: User
) -> None:
    """The administrator behind an impersonator's token, nobody behind another (RFC 8693)."""
    tokens = await impersonate(admin, bob.id, ada)
    said = await auth.sessions.validate_token(tokens.access_token)
    assert said
    assert (said.user_id, said.actor) == (bob.id, ada.user_id)
    own, _ = await log_in(auth, bob.email)
    said = await auth.sessions.validate_token(own.access_token)
    assert said
    assert said.actor is None


async def test_a_change_of_plan_does_not_end_it(
    auth: AuthRoom, admin: AdminService, ada: Caller, bob: User
) -> None:
    """Only the role admin is a matter of escalation: a user who starts to pay is one still."""
    tokens = await impersonate(admin, bob.id, ada)
    await set_role(auth, SERVICE, bob.id, Role.PRO)
    again = await auth.sessions.refresh(tokens.refresh_token)
    assert (await auth.verifier.verify(again.access_token)).role == "pro"


async def test_with_a_key_there_is_one_session(
    admin: AdminService, owner: Connection, ada: Caller, bob: User, clock: FakeClock
) -> None:
    """50 calls with one key open one session; the key alone is no proof of who calls later."""
    key = Key(ada.key, "ImpersonateUser", "k", b"same")
    answers = await at_once(50, lambda _: impersonate(admin, bob.id, ada, key))
    assert len({tokens.refresh_token for tokens in answers}) == 1
    assert await impersonations(owner) == 1
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") == 1
    clock.advance(minutes=11)
    assert await reason_of(impersonate(admin, bob.id, ada, key)) == "STEP_UP_REQUIRED"


async def promoted_meanwhile(
    auth: AuthRoom, admin: AdminService, owner: Connection, ada: Caller, user: User
) -> int:
    """A user is impersonated and promoted at once; returns how many act as an administrator."""

    async def one(index: int) -> object:
        if index == 5:
            return await set_role(auth, ada, user.id, Role.ADMIN)
        return await impersonate(admin, user.id, ada)

    await at_once(10, one)
    return int(
        await owner.fetchval(
            "SELECT count(*) FROM sessions s JOIN users u ON u.id = s.user_id"
            " WHERE u.role = 'admin' AND s.impersonated_by IS NOT NULL AND s.ended_at IS NULL"
        )
    )


async def test_nobody_acts_as_somebody_who_is_promoted(
    auth: AuthRoom, admin: AdminService, owner: Connection, ada: Caller, clock: FakeClock
) -> None:
    """An impersonation at the moment of the promotion is ended by it or refused, in every round."""
    for _ in range(10):
        user = await make_user(owner, clock)
        assert await promoted_meanwhile(auth, admin, owner, ada, user) == 0


async def test_without_the_lock_it_would_be_an_escalation(
    *,
    auth: AuthRoom,
    admin: AdminService,
    owner: Connection,
    ada: Caller,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: who reads the role instead of locking the account becomes one."""

    async def read_only(conn: Connection, user_id: UUID) -> User | None:
        user = await store_users.get_user(conn, user_id)
        await asyncio.sleep(0.05)
        return user

    async def read_admins(conn: Connection, *_: Any) -> list[UUID]:
        rows = await conn.fetch("SELECT id FROM users WHERE role = 'admin'")
        return [row["id"] for row in rows]

    monkeypatch.setattr(store_users, "lock_user", read_only)
    monkeypatch.setattr(store_users, "lock_admins", read_admins)

    async def acts() -> bool:
        user = await make_user(owner, clock)
        return await promoted_meanwhile(auth, admin, owner, ada, user) > 0

    assert await sooner_or_later(acts)
