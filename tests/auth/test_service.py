"""Accounts, logins and roles, as use cases over a database of the test's own."""

import asyncio
import json
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest

from chassis.callers import Caller
from chassis.errors import Code, Refusal
from chassis.idempotency import KEPT, Key
from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from services.auth.__main__ import MIGRATIONS
from services.auth.domain.users import Role, User
from services.auth.errors import (
    EmailAlreadyTaken,
    HashingBusy,
    LastAdmin,
    LoginFailed,
    RefreshTokenInvalid,
    SessionEnded,
)
from services.auth.passwords import Passwords
from services.auth.store import admin_logs as store_admin_logs
from services.auth.store import users as store_users
from services.auth.worker import sweep
from tests.auth.leaving import fresh
from tests.factories import (
    MEANS,
    POLICY,
    SERVICE,
    AuthRoom,
    an_address,
    at_once,
    log_in,
    make_user,
    open_auth,
    reason_of,
)
from tests.fakes import FakeClock
from tests.owner import make_admin
from tests.running import PASSWORD


def a_key(method: str = "Register", *, key: str = "k", fingerprint: bytes = b"same") -> Key:
    return Key("public", method, key, fingerprint)


async def register(auth: AuthRoom, email: str = "", key: Key | None = None) -> User:
    return await auth.accounts.register(email=email or an_address(), password=PASSWORD, key=key)


async def fifty_register(auth: AuthRoom, email: str) -> list[Any]:
    return await at_once(50, lambda _: register(auth, email))


async def give_role(
    auth: AuthRoom, user: User, role: Role, key: Key | None = None, actor: Caller = SERVICE
) -> User:
    return await auth.accounts.set_role(
        user_id=user.id, role=role, reason="test", actor=actor, key=key
    )


async def an_admin(auth: AuthRoom, owner: Connection) -> tuple[User, Caller]:
    """Registers an administrator, who proved just now who it is."""
    user = await register(auth)
    await make_admin(owner, user.id)
    return user, fresh(auth, user)


async def test_one_account_for_all_spellings(auth: AuthRoom) -> None:
    """An address is trimmed, composed and lowered before it is stored or looked for."""
    user = await register(auth, "  E\u0301va@Example.com ")
    assert user.email == "\u00e9va@example.com"
    with pytest.raises(EmailAlreadyTaken):
        await register(auth, "\u00c9VA@example.com")
    tokens, found = await log_in(auth, " \u00c9va@EXAMPLE.com")
    assert (found.id, tokens.session.user_id) == (user.id, user.id)


@pytest.mark.usefixtures("every_connection")
async def test_fifty_registrations_make_one_account(auth: AuthRoom, owner: Connection) -> None:
    """Of 50 callers who register one address at once, one gets it, in every round."""
    for _ in range(5):
        answers = await fifty_register(auth, an_address())
        assert sum(isinstance(answer, User) for answer in answers) == 1
        assert sum(isinstance(answer, EmailAlreadyTaken) for answer in answers) == 49
    assert await owner.fetchval("SELECT count(*) FROM users") == 5
    assert await owner.fetchval("SELECT count(*) FROM auth_outbox WHERE topic <> 'mail'") == 5


@pytest.mark.usefixtures("every_connection")
async def test_look_before_insert_would_make_fifty(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the unique constraint the same race makes several accounts."""
    await owner.execute("ALTER TABLE users DROP CONSTRAINT users_email_key")
    insert = store_users.insert_user

    async def look_first(conn: Connection, *, email: str, **rest: Any) -> User:
        if await store_users.find_by_email(conn, email):
            raise EmailAlreadyTaken
        await asyncio.sleep(0.05)
        return await insert(conn, email=email, **rest)

    monkeypatch.setattr(store_users, "insert_user", look_first)
    await fifty_register(auth, an_address())
    assert await owner.fetchval("SELECT count(*) FROM users") > 1


async def test_a_registration_is_announced_in_its_own_transaction(
    auth: AuthRoom, owner: Connection
) -> None:
    """The user and the event that announces it are one transaction's rows."""
    user = await register(auth)
    row = await owner.fetchrow(
        "SELECT o.topic, o.payload->>'user_id' AS user_id, d.consumer, d.state,"
        " u.xmin::text = o.xmin::text AND o.xmin::text = d.xmin::text AS together"
        " FROM users u, auth_outbox o JOIN auth_deliveries d ON d.event_id = o.id"
        " WHERE d.consumer = 'usage'"
    )
    assert tuple(row) == ("user_registered", str(user.id), "usage", "due", True)


async def test_registering_again_with_the_key_is_the_same_account(auth: AuthRoom) -> None:
    """The same key and request get the first answer again, alone or 50 at once."""
    email, key = an_address(), a_key()
    answers = await at_once(50, lambda _: register(auth, email, key))
    assert answers == [answers[0]] * 50
    assert await register(auth, email, key) == answers[0]


async def test_a_key_is_bound_to_its_request(auth: AuthRoom) -> None:
    """The same key with another request is refused, whatever the method."""
    user = await register(auth, key=a_key())
    other = a_key(fingerprint=b"other")
    assert await reason_of(register(auth, key=other)) == "IDEMPOTENCY_KEY_REUSED"

    def login(key: Key) -> Any:
        return log_in(auth, user.email, key=key)

    await login(a_key("Login"))
    again = login(a_key("Login", fingerprint=b"other"))
    assert await reason_of(again) == "IDEMPOTENCY_KEY_REUSED"
    await give_role(auth, user, Role.PRO, a_key("SetRole"))
    again = give_role(auth, user, Role.FREE, a_key("SetRole", fingerprint=b"other"))
    assert await reason_of(again) == "IDEMPOTENCY_KEY_REUSED"
    assert (await auth.accounts.get_user(user.id)).role is Role.PRO


async def test_a_refused_registration_leaves_the_key_free(auth: AuthRoom) -> None:
    """What was refused was rolled back with its key: the key may be used again."""
    taken = (await register(auth)).email
    assert await reason_of(register(auth, taken, a_key())) == "EMAIL_ALREADY_TAKEN"
    await register(auth, key=a_key(fingerprint=b"other"))


async def test_a_login_opens_a_session(auth: AuthRoom, owner: Connection, clock: FakeClock) -> None:
    """A login stamps last_login and gives tokens of a session that starts now."""
    user = await register(auth)
    clock.advance(hours=1)
    tokens, found = await log_in(auth, user.email)
    assert found.last_login == clock.now()
    assert await auth.accounts.get_user(user.id) == found
    assert tokens.session.expires_at == clock.now() + POLICY.absolute
    caller = await auth.verifier.verify(tokens.access_token)
    assert (caller.user_id, caller.session_id, caller.role) == (user.id, tokens.session.id, "free")
    jti = jwt.decode(tokens.access_token, options={"verify_signature": False})["jti"]
    assert await owner.fetchval("SELECT access_token FROM sessions") == jti


async def test_a_wrong_password_and_an_unknown_address_are_the_same(
    auth: AuthRoom, owner: Connection
) -> None:
    """Both are refused with LOGIN_FAILED, equal in every part, and change nothing."""
    user = await register(auth)
    refusals = []
    for email, password in ((user.email, "wrong horse"), (an_address(), PASSWORD)):
        with pytest.raises(LoginFailed) as refused:
            await auth.sessions.login(means=MEANS, email=email, password=password, key=None)
        refusals.append(refused.value)
    one, other = refusals
    assert (one.code, one.reason, one.metadata) == (other.code, other.reason, other.metadata)
    assert (one.message, one.retry_after) == (other.message, other.retry_after)
    assert await owner.fetchval("SELECT count(*) FROM sessions") == 0
    assert (await auth.accounts.get_user(user.id)).last_login is None


async def test_an_account_without_a_password_cannot_log_in(
    auth: AuthRoom, owner: Connection
) -> None:
    """No password fits an account that signs in elsewhere."""
    user = await register(auth)
    await owner.execute("UPDATE users SET password_hash = NULL")
    login = log_in(auth, user.email)
    assert await reason_of(login) == "LOGIN_FAILED"


async def test_a_login_with_the_key_again_is_the_same_session(
    auth: AuthRoom, clock: FakeClock
) -> None:
    """A repeated login gets its session's tokens of now, also after a refresh."""
    user = await register(auth)
    key = a_key("Login")

    def login() -> Any:
        return log_in(auth, user.email, key=key)

    answers = await at_once(20, lambda _: login())
    assert len({tokens.refresh_token for tokens, _ in answers}) == 1
    assert {found.last_login for _, found in answers} == {clock.now()}
    first = answers[0][0]
    stamped = clock.now()
    clock.advance(minutes=1)
    refreshed = await auth.sessions.refresh(first.refresh_token)
    tokens, found = await login()
    assert tokens.refresh_token == refreshed.refresh_token
    assert found.last_login == stamped


@pytest.mark.parametrize(("days", "why"), [(0, "logout"), (30, "idle"), (90, "expired")])
async def test_a_login_with_the_key_again_tells_that_its_session_ended(
    auth: AuthRoom, clock: FakeClock, days: int, why: str
) -> None:
    """The key leads to its own session only; SESSION_ENDED says why that is over."""
    user = await register(auth)
    key = a_key("Login")
    tokens, _ = await log_in(auth, user.email, key=key)
    if days == 0:
        await auth.sessions.logout(tokens.session.id, by="user")
    clock.advance(days=days)
    with pytest.raises(Refusal) as refused:
        await log_in(auth, user.email, key=key)
    assert (refused.value.code, refused.value.reason) == (Code.UNAUTHENTICATED, "SESSION_ENDED")
    assert refused.value.metadata == {"end_reason": why}


async def test_a_login_renews_an_outdated_hash(
    auth: AuthRoom, auth_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """A hash of other parameters is replaced at login, once; the password still fits."""
    user = await register(auth)
    hashes = [await owner.fetchval("SELECT password_hash FROM users")]
    async with open_auth(auth_database, clock, time_cost=2) as stricter:
        for _ in range(2):
            await log_in(stricter, user.email)
            hashes.append(await owner.fetchval("SELECT password_hash FROM users"))
    assert ",t=1," in hashes[0]
    assert ",t=2," in hashes[1]
    assert hashes[2] == hashes[1]


async def test_a_password_changed_during_a_login_stays_changed(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who verified the password of before gets no session, and no old hash comes back."""
    user = await register(auth)
    verify = Passwords.verify

    async def verify_then_reset(passwords: Passwords, password: str, hashed: str | None) -> bool:
        fits = await verify(passwords, password, hashed)
        await owner.execute("UPDATE users SET password_hash = 'the new one'")
        return fits

    monkeypatch.setattr(Passwords, "verify", verify_then_reset)
    login = log_in(auth, user.email)
    assert await reason_of(login) == "LOGIN_FAILED"
    assert await owner.fetchval("SELECT password_hash FROM users") == "the new one"
    assert await owner.fetchval("SELECT count(*) FROM sessions") == 0


async def test_a_login_that_cannot_renew_its_hash_in_time_is_a_login(
    auth: AuthRoom,
    auth_database: Database,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The password fits: a busy hasher leaves the renewal to the next login."""
    user = await register(auth)

    async def busy(*_: object) -> str:
        raise HashingBusy

    async with open_auth(auth_database, clock, time_cost=2) as stricter:
        monkeypatch.setattr(Passwords, "hash", busy)
        await log_in(stricter, user.email)
    assert ",t=1," in await owner.fetchval("SELECT password_hash FROM users")


async def test_a_change_of_role_is_logged_in_its_own_transaction(
    auth: AuthRoom, owner: Connection
) -> None:
    """The user's row and the admin log's are one transaction's; the log says who, what and why."""
    user = await register(auth)
    changed = await give_role(auth, user, Role.PRO)
    assert (changed.role, changed.token_version) == (Role.PRO, 2)
    row = await owner.fetchrow(
        "SELECT l.actor, l.action, l.target_user_id, l.details::text,"
        " u.xmin::text = l.xmin::text FROM users u, admin_logs l"
    )
    details = '{"to": "pro", "from": "free", "reason": "test"}'
    assert tuple(row) == ("service:test", "set_role", user.id, details, True)


async def test_a_change_of_role_is_announced_in_its_own_transaction(
    auth: AuthRoom, owner: Connection
) -> None:
    """usage is told each change once, in rising sequence; a role that stays is told nobody."""
    user = await register(auth)
    for role in (Role.PRO, Role.PRO, Role.FREE):
        await give_role(auth, user, role)
    rows = await owner.fetch(
        "SELECT o.payload, d.consumer, u.xmin::text = o.xmin::text AS last"
        " FROM users u, auth_outbox o JOIN auth_deliveries d ON d.event_id = o.id"
        " WHERE o.topic = 'role_changed' ORDER BY o.payload->>'sequence'"
    )
    changes = [{"user_id": str(user.id), "role": "pro", "sequence": "2"}]
    changes.append({"user_id": str(user.id), "role": "free", "sequence": "3"})
    assert [json.loads(row["payload"]) for row in rows] == changes
    assert [tuple(row)[1:] for row in rows] == [("usage", False), ("usage", True)]


async def test_roles_from_before_are_announced(auth: AuthRoom, owner: Connection) -> None:
    """What the migration tells usage of those who have a role is older than their next change."""
    user, _ = await register(auth), await register(auth)
    await give_role(auth, user, Role.PRO)
    announced = "SELECT payload FROM auth_outbox WHERE topic = 'role_changed'"
    (changed,) = await owner.fetch(announced)
    await owner.execute("DELETE FROM auth_deliveries; DELETE FROM auth_outbox")
    await owner.execute((MIGRATIONS.directory / "0014_announce_roles.sql").read_text())
    assert await owner.fetch(announced) == [changed]
    due = await owner.fetch("SELECT consumer FROM auth_deliveries WHERE state = 'due'")
    assert [row["consumer"] for row in due] == ["usage"]


async def test_no_role_changes_unlogged(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the log cannot be written, the role stays and no token ends."""

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("disk full")

    user = await register(auth)
    monkeypatch.setattr(store_admin_logs, "insert_admin_log", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        await give_role(auth, user, Role.PRO)
    assert await auth.accounts.get_user(user.id) == user
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") == 0
    assert auth.announced == []


async def test_the_same_role_again_changes_nothing(auth: AuthRoom, owner: Connection) -> None:
    """Giving the role a user has ends no token and logs nothing."""
    user = await register(auth)
    assert await give_role(auth, user, Role.FREE) == user
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") == 0


async def test_a_role_with_the_key_again_is_changed_once(auth: AuthRoom, owner: Connection) -> None:
    """50 calls with one key change the role once and all get the first answer."""
    user = await register(auth)
    key = a_key("SetRole")
    answers = await at_once(50, lambda _: give_role(auth, user, Role.PRO, key))
    assert answers == [answers[0]] * 50
    assert answers[0].token_version == 2
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") == 1


async def test_nobody_has_no_role(auth: AuthRoom, clock: FakeClock) -> None:
    """Who does not exist is USER_NOT_FOUND, to read or to change."""
    assert await reason_of(auth.accounts.get_user(uuid4())) == "USER_NOT_FOUND"
    nobody = User(uuid4(), "", Role.FREE, 1, clock.now(), None)
    assert await reason_of(give_role(auth, nobody, Role.PRO)) == "USER_NOT_FOUND"


async def test_the_last_administrator_stays(auth: AuthRoom, owner: Connection) -> None:
    """The only administrator keeps the role until there is another one."""
    (ada, by_ada), bob = await an_admin(auth, owner), await register(auth)
    assert await reason_of(give_role(auth, ada, Role.FREE, actor=by_ada)) == "LAST_ADMIN"
    await give_role(auth, bob, Role.ADMIN, actor=by_ada)
    assert (await give_role(auth, ada, Role.FREE, actor=by_ada)).role is Role.FREE
    by_bob = fresh(auth, bob)
    assert await reason_of(give_role(auth, bob, Role.PRO, actor=by_bob)) == "LAST_ADMIN"


async def step_down_together(auth: AuthRoom, owner: Connection) -> tuple[list[Any], int]:
    """Two administrators step down at once; returns the answers and who is left."""
    pair = [await an_admin(auth, owner), await an_admin(auth, owner)]

    async def step_down(index: int) -> User:
        user, caller = pair[index]
        return await give_role(auth, user, Role.FREE, actor=caller)

    answers = await at_once(2, step_down)
    left = await owner.fetchval("SELECT count(*) FROM users WHERE role = 'admin'")
    await owner.execute("UPDATE users SET role = 'free'")
    return answers, left


async def test_two_administrators_cannot_step_down_together(
    auth: AuthRoom, owner: Connection
) -> None:
    """Of two demotions at once that would leave nobody, one is refused, in every round."""
    for _ in range(20):
        answers, left = await step_down_together(auth, owner)
        assert left == 1
        assert sorted(type(answer).__name__ for answer in answers) == ["LastAdmin", "User"]


async def test_without_the_lock_nobody_would_be_left(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: counting administrators without locking them demotes both."""
    both_counted = asyncio.Barrier(2)

    async def count_only(conn: Connection, _: datetime) -> list[UUID]:
        rows = await conn.fetch("SELECT id FROM users WHERE role = 'admin' ORDER BY id")
        if len(rows) == 2:
            await both_counted.wait()
        return [row["id"] for row in rows]

    monkeypatch.setattr(store_users, "lock_admins", count_only)
    answers, left = await step_down_together(auth, owner)
    assert left == 0
    assert not any(isinstance(answer, LastAdmin) for answer in answers)


async def test_a_locked_user_can_still_be_referred_to(
    auth_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """While a role changes, sessions and events of that user need not wait."""
    user = await make_user(owner, clock, role=Role.ADMIN)
    await owner.execute("SET lock_timeout = '2s'")
    async with auth_database.transaction() as conn:
        assert await store_users.lock_admins(conn, clock.now()) == [user.id]
        await store_users.lock_user(conn, user.id)
        await owner.execute(
            "INSERT INTO email_verifications (id, user_id, token, created_at, expires_at)"
            " VALUES ($1, $2, 't', $3, $3)",
            uuid7(clock.now()),
            user.id,
            clock.now(),
        )


async def test_the_sweeper_deletes_only_what_is_over(
    auth: AuthRoom, auth_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Keys go after 72 hours, sessions so long after their lifetime; users and logs stay."""
    user = await register(auth, key=a_key())
    lapsed, _ = await log_in(auth, user.email)
    ended, _ = await log_in(auth, user.email)
    await auth.sessions.logout(ended.session.id, by="user")
    await give_role(auth, user, Role.PRO)
    clock.advance(seconds=KEPT.total_seconds())
    assert await sweep(auth_database, clock) == 0
    clock.advance(microseconds=1)
    assert await sweep(auth_database, clock) == 1
    assert await owner.fetchval("SELECT count(*) FROM auth_idempotency_keys") == 0
    assert await owner.fetchval("SELECT count(*) FROM sessions") == 2
    clock.advance(days=90, microseconds=-1)
    # What registering wrote to verify the address: its secret and its pause.
    assert await sweep(auth_database, clock) == 2
    with pytest.raises(SessionEnded) as over:
        await auth.sessions.refresh(lapsed.refresh_token)
    assert over.value.metadata == {"end_reason": "expired"}
    clock.advance(microseconds=1)
    assert await sweep(auth_database, clock) == 2
    with pytest.raises(RefreshTokenInvalid):
        await auth.sessions.refresh(lapsed.refresh_token)
    for table in ("sessions", "email_verifications", "email_requests"):
        assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 0, table  # noqa: S608
    for table in ("users", "admin_logs", "auth_outbox", "auth_deliveries", "signing_keys"):
        # In the outbox: that somebody registered and got a role, and the mail to verify.
        rows = 3 if table in ("auth_outbox", "auth_deliveries") else 1
        assert await owner.fetchval(f"SELECT count(*) FROM {table}") == rows, table  # noqa: S608
