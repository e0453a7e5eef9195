"""Finding, banning and logging out users, as use cases over a database of the test's own."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from chassis.callers import Caller, Kind
from chassis.errors import Code, Refusal
from chassis.idempotency import Key
from chassis.postgres import Connection
from services.auth.domain.admin import UserFilter, UserState
from services.auth.domain.sessions import Session
from services.auth.domain.users import Role, User
from services.auth.errors import LastAdmin
from services.auth.service.admin import AdminService
from services.auth.store import admin_logs as store_admin_logs
from services.auth.store import sessions as store_sessions
from services.auth.store import users as store_users
from tests.factories import (
    AuthRoom,
    an_address,
    at_once,
    log_in,
    make_user,
    reason_of,
    sooner_or_later,
)
from tests.fakes import FakeClock
from tests.running import PASSWORD

BILLING = Caller(Kind.SERVICE, name="billing")


@pytest.fixture
def admin(auth: AuthRoom) -> AdminService:
    return AdminService(auth.room, auth.sessions)


@pytest.fixture
async def ada(owner: Connection, clock: FakeClock) -> Caller:
    """An administrator, as the one who calls."""
    return calls(await make_user(owner, clock, role=Role.ADMIN), clock)


def calls(user: User, clock: FakeClock) -> Caller:
    """The user, who proved just now who it is."""
    return Caller(Kind.USER, user_id=user.id, role=user.role, auth_time=clock.now())


async def register(auth: AuthRoom) -> User:
    return await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)


async def ban(
    admin: AdminService,
    user_id: UUID | None,
    caller: Caller,
    *,
    until: datetime | None = None,
    key: Key | None = None,
) -> User:
    assert user_id
    return await admin.ban_user(user_id=user_id, reason="spam", until=until, caller=caller, key=key)


async def unban(admin: AdminService, user_id: UUID, caller: Caller) -> User:
    return await admin.unban_user(user_id=user_id, reason="sorry", caller=caller, key=None)


async def revoke(admin: AdminService, user_id: UUID, caller: Caller, key: Key | None = None) -> int:
    return await admin.revoke_sessions(user_id=user_id, reason="lost", caller=caller, key=key)


async def living(owner: Connection, user_id: UUID) -> int:
    """How many sessions of a user live."""
    query = "SELECT count(*) FROM sessions WHERE user_id = $1 AND ended_at IS NULL"
    return int(await owner.fetchval(query, user_id))


async def logged(owner: Connection) -> list[tuple[Any, ...]]:
    """Returns action, actor and details of each entry, in their order."""
    rows = await owner.fetch(
        "SELECT action, actor, target_user_id, details->>'reason' AS reason,"
        " details->>'ended_sessions' AS ended FROM admin_logs ORDER BY seq"
    )
    return [tuple(row.values()) for row in rows]


async def test_a_ban_ends_everything_and_lets_nobody_in(
    auth: AuthRoom, admin: AdminService, owner: Connection, ada: Caller
) -> None:
    """Sessions, access tokens and logins are over; the log says who, whom, why and how many."""
    user = await register(auth)
    first, _ = await log_in(auth, user.email)
    await log_in(auth, user.email)
    banned = await ban(admin, user.id, ada)
    assert (banned.ban_reason, banned.banned_until) == ("spam", None)
    assert await living(owner, user.id) == 0
    assert await reason_of(auth.verifier.verify(first.access_token)) == "TOKEN_REVOKED"
    with pytest.raises(Refusal) as refused:
        await auth.sessions.refresh(first.refresh_token)
    assert refused.value.metadata == {"end_reason": "banned"}
    assert await reason_of(log_in(auth, user.email)) == "LOGIN_FAILED"
    assert await logged(owner) == [("ban_user", ada.key, user.id, "spam", "2")]
    (revoked,) = auth.announced
    assert len(revoked.sessions) == 2
    assert revoked.versions == [(user.id, user.token_version + 1)]


async def test_a_ban_ends_by_itself(
    auth: AuthRoom, admin: AdminService, owner: Connection, clock: FakeClock
) -> None:
    """From its end on the user logs in again, and counts as active."""
    user = await register(auth)
    until = clock.now() + timedelta(days=1)
    await ban(admin, user.id, BILLING, until=until)
    clock.advance(hours=23)
    assert await reason_of(log_in(auth, user.email)) == "LOGIN_FAILED"
    clock.advance(hours=1)
    await log_in(auth, user.email)
    found, _ = await admin.search_users(UserFilter(state=UserState.BANNED), before=None, limit=9)
    assert found == []
    assert await owner.fetchval("SELECT details->>'until' FROM admin_logs") == until.isoformat()


async def test_banning_again_replaces_reason_and_end(
    auth: AuthRoom, admin: AdminService, clock: FakeClock
) -> None:
    """The last word counts, be it longer or shorter."""
    user = await register(auth)
    await ban(admin, user.id, BILLING)
    until = clock.now() + timedelta(hours=1)
    banned = await ban(admin, user.id, BILLING, until=until)
    assert banned.banned_until == until
    assert (await ban(admin, user.id, BILLING)).banned_until is None


async def test_bans_are_refused_by_reason(
    auth: AuthRoom, admin: AdminService, owner: Connection, ada: Caller, clock: FakeClock
) -> None:
    """Oneself, nobody, the past and the erased; nothing is logged."""
    user = await register(auth)
    self = await reason_and_code(ban(admin, ada.user_id, ada))
    assert self == (Code.FAILED_PRECONDITION, "SELF_BAN")
    past = await reason_and_code(ban(admin, user.id, ada, until=clock.now()))
    assert past == (Code.INVALID_ARGUMENT, "BAN_EXPIRY_PASSED")
    assert await reason_of(ban(admin, uuid4(), ada)) == "USER_NOT_FOUND"
    await owner.execute(
        "UPDATE users SET deletion_requested_at = $2, erasure_due_at = $2, erased_at = $2,"
        " password_hash = NULL WHERE id = $1",
        *(user.id, clock.now()),
    )
    erased = await reason_and_code(ban(admin, user.id, ada))
    assert erased == (Code.FAILED_PRECONDITION, "USER_NOT_ACTIVE")
    assert await logged(owner) == []
    assert auth.announced == []


async def test_a_service_neither_bans_nor_unbans_an_administrator(
    admin: AdminService, owner: Connection, ada: Caller, clock: FakeClock
) -> None:
    """ROLE_NOT_GRANTABLE, whether or not another one is left; an administrator does both."""
    refused = (Code.PERMISSION_DENIED, "ROLE_NOT_GRANTABLE")
    assert await reason_and_code(ban(admin, ada.user_id, BILLING)) == refused
    bob = await make_user(owner, clock, role=Role.ADMIN)
    assert await reason_and_code(ban(admin, bob.id, BILLING)) == refused
    await ban(admin, bob.id, ada)
    assert await reason_and_code(unban(admin, bob.id, BILLING)) == refused
    assert (await unban(admin, bob.id, ada)).banned_at is None
    assert len(await logged(owner)) == 2


async def reason_and_code(call: Any) -> tuple[Code, str]:
    with pytest.raises(Refusal) as refused:
        await call
    return refused.value.code, refused.value.reason


async def test_who_is_no_administrator_any_more_does_nothing(
    auth: AuthRoom, admin: AdminService, owner: Connection, ada: Caller, clock: FakeClock
) -> None:
    """A token from before the ban or demotion is not enough, however fast it is used."""
    user = await register(auth)
    bob = calls(await make_user(owner, clock, role=Role.ADMIN), clock)
    await ban(admin, bob.user_id, ada)
    for call in (ban(admin, user.id, bob), unban(admin, user.id, bob), revoke(admin, user.id, bob)):
        assert await reason_of(call) == "ACCESS_DENIED"
    assert len(await logged(owner)) == 1


async def test_a_banned_administrator_is_none_that_is_left(
    auth: AuthRoom, admin: AdminService, owner: Connection, ada: Caller, clock: FakeClock
) -> None:
    """Whoever remains beside banned administrators is the last one, until a ban is over."""
    bob = await make_user(owner, clock, role=Role.ADMIN)
    await ban(admin, bob.id, ada, until=clock.now() + timedelta(hours=1))
    assert ada.user_id

    async def demote() -> str:
        assert ada.user_id
        fresh = replace(ada, auth_time=clock.now())
        return await reason_of(
            auth.accounts.set_role(
                user_id=ada.user_id, role=Role.FREE, reason="t", actor=fresh, key=None
            )
        )

    assert await demote() == "LAST_ADMIN"
    clock.advance(hours=1)
    assert await demote() == ""


async def test_an_unbanned_user_logs_in(
    auth: AuthRoom, admin: AdminService, owner: Connection, ada: Caller
) -> None:
    """The ban is gone, the sessions of before are not back; who is not banned is not logged."""
    user = await register(auth)
    tokens, _ = await log_in(auth, user.email)
    await ban(admin, user.id, ada)
    unbanned = await unban(admin, user.id, ada)
    assert (unbanned.banned_at, unbanned.ban_reason) == (None, None)
    assert await reason_of(auth.sessions.refresh(tokens.refresh_token)) == "SESSION_ENDED"
    await log_in(auth, user.email)
    assert (await unban(admin, user.id, ada)).banned_at is None
    assert [entry[0] for entry in await logged(owner)] == ["ban_user", "unban_user"]
    assert await reason_of(unban(admin, uuid4(), ada)) == "USER_NOT_FOUND"


async def test_sessions_are_ended_by_an_administrator(
    auth: AuthRoom, admin: AdminService, owner: Connection, ada: Caller
) -> None:
    """All of a user's sessions and tokens are over, nobody else's; the user may log in again."""
    user, other = await register(auth), await register(auth)
    tokens = [(await log_in(auth, user.email))[0] for _ in range(3)]
    await log_in(auth, other.email)
    assert await revoke(admin, user.id, ada) == 3
    assert (await living(owner, user.id), await living(owner, other.id)) == (0, 1)
    for opened in tokens:
        assert await reason_of(auth.verifier.verify(opened.access_token)) == "TOKEN_REVOKED"
    assert (
        await owner.fetchval("SELECT DISTINCT end_reason FROM sessions WHERE user_id = $1", user.id)
        == "revoked_by_admin"
    )
    await log_in(auth, user.email)
    assert await logged(owner) == [("revoke_sessions", ada.key, user.id, "lost", "3")]
    assert await reason_of(revoke(admin, uuid4(), ada)) == "USER_NOT_FOUND"


@pytest.mark.parametrize("after", [False, True])
async def test_no_action_without_its_log_and_no_log_without_its_action(
    *,
    auth: AuthRoom,
    admin: AdminService,
    owner: Connection,
    ada: Caller,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
) -> None:
    """Whichever of the two fails, before or after the other, neither is there."""
    user, other = await register(auth), await register(auth)
    await log_in(auth, user.email)
    await ban(admin, other.id, ada)
    insert = store_admin_logs.insert_admin_log

    async def fail(*given: Any, **named: Any) -> None:
        if after:
            await insert(*given, **named)
        raise RuntimeError("disk full")

    monkeypatch.setattr(store_admin_logs, "insert_admin_log", fail)
    auth.announced.clear()
    for call in (
        ban(admin, user.id, ada),
        revoke(admin, user.id, ada),
        unban(admin, other.id, ada),
    ):
        with pytest.raises(RuntimeError, match="disk full"):
            await call
    assert await auth.accounts.get_user(user.id) == (await store_users.get_user(owner, user.id))
    assert (await auth.accounts.get_user(user.id)).banned_at is None
    assert (await auth.accounts.get_user(other.id)).banned_at is not None
    assert await living(owner, user.id) == 1
    assert len(await logged(owner)) == 1
    assert auth.announced == []


async def test_action_and_log_are_one_transaction(
    auth: AuthRoom, admin: AdminService, owner: Connection, ada: Caller
) -> None:
    """The user's, the session's and the log's rows have one transaction's number."""
    user = await register(auth)
    await log_in(auth, user.email)
    await ban(admin, user.id, ada)
    assert await owner.fetchval(
        "SELECT u.xmin::text = s.xmin::text AND s.xmin::text = l.xmin::text"
        " FROM users u JOIN sessions s ON s.user_id = u.id, admin_logs l"
    )


async def test_with_a_key_things_happen_once(
    auth: AuthRoom, admin: AdminService, owner: Connection, ada: Caller
) -> None:
    """50 calls with one key change and log once and all get the first answer."""
    user = await register(auth)
    await log_in(auth, user.email)
    key = Key("user:ada", "RevokeUserSessions", "k", b"same")
    assert await at_once(50, lambda _: revoke(admin, user.id, ada, key)) == [1] * 50
    key = Key("user:ada", "BanUser", "k", b"same")
    answers = await at_once(50, lambda _: ban(admin, user.id, ada, key=key))
    assert answers == [answers[0]] * 50
    assert [entry[0] for entry in await logged(owner)] == ["revoke_sessions", "ban_user"]
    other = Key("user:ada", "BanUser", "k", b"other")
    assert await reason_of(ban(admin, user.id, ada, key=other)) == "IDEMPOTENCY_KEY_REUSED"


async def ban_among_logins(auth: AuthRoom, admin: AdminService, owner: Connection) -> int:
    """50 logins and a ban behind one barrier; returns how many sessions outlive the ban."""
    user = await register(auth)

    async def one(index: int) -> object:
        if index == 25:
            return await ban(admin, user.id, BILLING)
        return await log_in(auth, user.email)

    answers = await at_once(51, one)
    assert isinstance(answers[25], User)
    return await living(owner, user.id)


async def test_no_session_outlives_a_ban(
    auth: AuthRoom, admin: AdminService, owner: Connection
) -> None:
    """A login at the moment of the ban is ended by it or refused, in every round."""
    for _ in range(5):
        assert await ban_among_logins(auth, admin, owner) == 0


async def test_logins_that_look_first_would_outlive_a_ban(
    auth: AuthRoom, admin: AdminService, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: logins that read the account instead of locking it get through."""

    async def look_first(
        conn: Connection, session: Session, *, verified: str, new_hash: str | None, **rest: Any
    ) -> User | None:
        user = await store_users.get_user(conn, session.user_id)
        await asyncio.sleep(0.05)
        if user is None or user.banned(session.created_at):
            return None
        await store_sessions.insert_session(conn, session, **rest)
        return user

    monkeypatch.setattr(store_sessions, "open_session", look_first)

    async def outlives() -> bool:
        return await ban_among_logins(auth, admin, owner) > 0

    assert await sooner_or_later(outlives)


async def ban_each_other(
    admin: AdminService, owner: Connection, clock: FakeClock
) -> tuple[list[Any], int]:
    """Two administrators ban each other at once; returns the answers and how many are left."""
    pair = [calls(await make_user(owner, clock, role=Role.ADMIN), clock) for _ in range(2)]
    answers = await at_once(2, lambda index: ban(admin, pair[1 - index].user_id, pair[index]))
    left = await owner.fetchval(
        "SELECT count(*) FROM users WHERE role = 'admin' AND banned_at IS NULL"
    )
    await owner.execute("UPDATE users SET role = 'free'")
    return answers, left


async def test_two_administrators_cannot_ban_each_other(
    admin: AdminService, owner: Connection, clock: FakeClock
) -> None:
    """Whoever comes second is no administrator any more, in every round."""
    for _ in range(20):
        answers, left = await ban_each_other(admin, owner, clock)
        assert left == 1
        assert sorted(type(answer).__name__ for answer in answers) == ["AccessDenied", "User"]


async def test_without_the_lock_both_would_be_banned(
    admin: AdminService, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: administrators who are only counted ban each other."""
    both_counted = asyncio.Barrier(2)

    async def count_only(conn: Connection, _: datetime) -> list[UUID]:
        rows = await conn.fetch("SELECT id FROM users WHERE role = 'admin' AND banned_at IS NULL")
        await both_counted.wait()
        return [row["id"] for row in rows]

    monkeypatch.setattr(store_users, "lock_admins", count_only)
    answers, left = await ban_each_other(admin, owner, clock)
    assert left == 0
    assert not any(isinstance(answer, LastAdmin) for answer in answers)


async def test_a_refused_ban_ends_no_session(
    auth: AuthRoom, admin: AdminService, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails after the ban takes the ban back: sessions that did not end stay usable."""
    user = await register(auth)
    tokens, _ = await log_in(auth, user.email)

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("cut")

    monkeypatch.setattr(store_sessions, "end_sessions", fail)
    with pytest.raises(RuntimeError, match="cut"):
        await ban(admin, user.id, BILLING)
    await auth.sessions.refresh(tokens.refresh_token)
    assert await logged(owner) == []
