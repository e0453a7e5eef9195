"""The auth room's SQL; every test is rolled back."""

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from chassis.ids import uuid7
from chassis.postgres import Connection
from services.auth.domain.sessions import EndReason, Session
from services.auth.domain.users import Role, User
from services.auth.errors import EmailAlreadyTaken
from services.auth.keys import make_key
from services.auth.store import revocations as store_revocations
from services.auth.store import sessions as store_sessions
from services.auth.store import signing_keys as store_signing_keys
from services.auth.store import users as store_users
from tests.factories import POLICY, SEALING_SECRET, make_user
from tests.fakes import FakeClock

TICK = timedelta(microseconds=1)


async def make_session(
    conn: Connection, clock: FakeClock, *, refreshed_at: datetime | None = None
) -> Session:
    """Inserts a session that starts now."""
    now = clock.now()
    user = await make_user(conn, clock)
    session = Session(uuid7(now), user.id, 0, now, now + POLICY.absolute, now)
    await store_sessions.open_session(
        conn,
        session,
        device="",
        address=None,
        access_token_id=str(uuid4()),
        refresh_digest=uuid4().hex,
        verified=None,
        new_hash=None,
    )
    if refreshed_at:
        await conn.execute(
            "UPDATE sessions SET refreshed_at = $2 WHERE id = $1", session.id, refreshed_at
        )
    return session


async def rotate(conn: Connection, session_id: UUID, counter: int, now: datetime) -> Session | None:
    return await store_sessions.rotate_session(
        conn,
        session_id=session_id,
        counter=counter,
        refresh_digest=uuid4().hex,
        access_token_id=str(uuid4()),
        idle_since=now - POLICY.idle,
        address=None,
        now=now,
    )


async def test_a_new_user_is_free_and_was_never_here(conn: Connection, clock: FakeClock) -> None:
    """A user starts with the role free, token version 1 and no login."""
    user = await make_user(conn, clock, email="ada@example.com")
    assert await store_users.get_user(conn, user.id) == user
    assert (user.role, user.token_version, user.last_login) == (Role.FREE, 1, None)
    assert await store_users.find_login(conn, "ada@example.com") == (user.id, "none")


async def test_nobody_is_none(conn: Connection, clock: FakeClock) -> None:
    """What is not there is None, not an error."""
    assert await store_users.get_user(conn, uuid4()) is None
    assert await store_users.lock_user(conn, uuid4()) is None
    assert await store_users.find_login(conn, "nobody@example.com") == (None, None)
    assert await store_sessions.get_session(conn, uuid4()) is None
    assert await store_sessions.lock_session(conn, uuid4()) is None
    assert await rotate(conn, uuid4(), 0, clock.now()) is None


async def test_an_address_belongs_to_one_account(conn: Connection, clock: FakeClock) -> None:
    """A second account with an address is refused, EMAIL_ALREADY_TAKEN."""
    await make_user(conn, clock, email="ada@example.com")
    with pytest.raises(EmailAlreadyTaken):
        await make_user(conn, clock, email="ada@example.com")


@pytest.mark.parametrize("email", ["Ada@example.com", " ada@example.com", "a@", "a" * 255])
async def test_the_database_keeps_addresses_normal(
    conn: Connection, clock: FakeClock, email: str
) -> None:
    """An address that is not normalised, or of no possible length, cannot be stored."""
    with pytest.raises(asyncpg.CheckViolationError):
        await make_user(conn, clock, email=email)


async def test_users_are_listed_by_key(conn: Connection, clock: FakeClock) -> None:
    """Users come newest first, from just before a key, of one role if asked."""
    users: list[User] = []
    for index in range(5):
        clock.advance(seconds=1)
        role = Role.PRO if index % 2 else Role.FREE
        users.insert(0, await make_user(conn, clock, role=role))
    listed = await store_users.list_users(conn, role=None, before=None, limit=3)
    assert listed == users[:3]
    assert await store_users.list_users(conn, role=None, before=users[2].id, limit=9) == users[3:]
    assert await store_users.list_users(conn, role=Role.PRO, before=None, limit=9) == users[1::2]


async def open_session(
    conn: Connection, user: User, now: datetime, *, verified: str | None = None, new: str = ""
) -> User | None:
    session = Session(uuid7(now), user.id, 0, now, now + POLICY.absolute, now)
    return await store_sessions.open_session(
        conn,
        session,
        device="",
        address=None,
        access_token_id=str(uuid4()),
        refresh_digest=uuid4().hex,
        verified=verified,
        new_hash=new or None,
    )


async def test_a_login_is_stamped(conn: Connection, clock: FakeClock) -> None:
    """A session opens with its login stamped; a ban that holds lets nobody in, nor does nobody."""
    user = await make_user(conn, clock)
    stamped = await open_session(conn, user, clock.now())
    assert stamped == replace(user, last_login=clock.now())
    ban = "UPDATE users SET banned_at = $2, banned_until = $3, ban_reason = 'test' WHERE id = $1"
    await conn.execute(ban, user.id, clock.now(), clock.now() + timedelta(hours=1))
    assert await open_session(conn, user, clock.now()) is None
    clock.advance(hours=1)
    assert await open_session(conn, user, clock.now()) is not None
    await conn.execute(ban, user.id, clock.now(), None)
    assert await open_session(conn, user, clock.now()) is None
    assert await open_session(conn, replace(user, id=uuid4()), clock.now()) is None
    assert await conn.fetchval("SELECT count(*) FROM sessions") == 2


async def test_a_session_opens_on_the_password_that_was_verified(
    conn: Connection, clock: FakeClock
) -> None:
    """A hash changed since opens nothing; a new hash replaces only the one that was verified."""
    user = await make_user(conn, clock)
    assert await open_session(conn, user, clock.now(), verified="none", new="new") is not None
    assert await open_session(conn, user, clock.now(), verified="none", new="late") is None
    assert await store_users.find_login(conn, user.email) == (user.id, "new")


async def test_a_new_role_is_a_new_version(conn: Connection, clock: FakeClock) -> None:
    """A change of role ends the tokens of the version before."""
    user = await make_user(conn, clock)
    changed = await store_users.set_role(conn, user.id, Role.PRO, clock.now())
    assert (changed.role, changed.token_version) == (Role.PRO, 2)
    now = clock.now()
    assert await store_revocations.revoked_versions(conn, now - TICK) == [(user.id, 2, now)]
    assert await store_revocations.revoked_versions(conn, now) == []


async def test_only_administrators_are_locked(conn: Connection, clock: FakeClock) -> None:
    """lock_admins names every administrator and nobody else, in the order of their ids."""
    admins = [(await make_user(conn, clock, role=Role.ADMIN)).id for _ in range(3)]
    await make_user(conn, clock, role=Role.PRO)
    assert await store_users.lock_admins(conn, clock.now()) == sorted(admins)


async def test_rotation_moves_one_step(conn: Connection, clock: FakeClock) -> None:
    """A living session moves from the counter presented to the next one, once."""
    session = await make_session(conn, clock)
    clock.advance(seconds=5)
    rotated = await rotate(conn, session.id, 0, clock.now())
    assert rotated is not None
    assert (rotated.counter, rotated.refreshed_at) == (1, clock.now())
    assert await rotate(conn, session.id, 0, clock.now()) is None
    assert await store_sessions.get_session(conn, session.id) == rotated


@pytest.mark.parametrize("counter", [1, 2, 1000])
async def test_no_step_is_skipped(conn: Connection, clock: FakeClock, counter: int) -> None:
    """A counter that is not reached yet rotates nothing."""
    session = await make_session(conn, clock)
    assert await rotate(conn, session.id, counter, clock.now()) is None
    assert await store_sessions.get_session(conn, session.id) == session


async def test_what_is_over_does_not_rotate(conn: Connection, clock: FakeClock) -> None:
    """An ended, expired or idle session stays as it is, to the microsecond."""
    now = clock.now()
    ended = await make_session(conn, clock)
    await store_sessions.end_session(conn, ended.id, reason=EndReason.LOGOUT, by="user", now=now)
    assert await rotate(conn, ended.id, 0, now) is None
    later = now + POLICY.absolute
    expired = await make_session(conn, clock, refreshed_at=later - TICK)
    assert await rotate(conn, expired.id, 0, later) is None
    assert await rotate(conn, expired.id, 0, later - TICK) is not None
    idle = await make_session(conn, clock)
    assert await rotate(conn, idle.id, 0, now + POLICY.idle) is None
    assert await rotate(conn, idle.id, 0, now + POLICY.idle - TICK) is not None


async def test_a_session_ends_once(conn: Connection, clock: FakeClock) -> None:
    """The first end keeps its reason; a second one changes nothing."""
    session, now = await make_session(conn, clock), clock.now()
    assert await store_sessions.end_session(
        conn, session.id, reason=EndReason.REPLAY, by="system", now=now
    )
    later = now + timedelta(hours=1)
    assert not await store_sessions.end_session(
        conn, session.id, reason=EndReason.LOGOUT, by="user", now=later
    )
    ended = await store_sessions.get_session(conn, session.id)
    assert ended is not None
    assert (ended.ended_at, ended.end_reason) == (now, EndReason.REPLAY)
    assert await store_revocations.ended_sessions(conn, now - TICK) == [(session.id, now)]
    assert await store_revocations.ended_sessions(conn, now) == []


async def test_only_sessions_past_their_lifetime_are_deleted(
    conn: Connection, clock: FakeClock
) -> None:
    """A session is deleted after its absolute lifetime, not when it was ended or idle."""
    old = await make_session(conn, clock)
    clock.advance(microseconds=1)
    young = await make_session(conn, clock)
    await store_sessions.end_session(
        conn, young.id, reason=EndReason.LOGOUT, by="user", now=clock.now()
    )
    assert await store_sessions.delete_old_sessions(conn, old.expires_at) == 0
    assert await store_sessions.delete_old_sessions(conn, young.expires_at) == 1
    assert await store_sessions.get_session(conn, old.id) is None
    assert await store_sessions.get_session(conn, young.id) is not None


async def test_old_sessions_go_in_batches(conn: Connection, clock: FakeClock) -> None:
    """One sweep deletes at most 1,000 sessions."""
    session = await make_session(conn, clock)
    await conn.execute(
        "INSERT INTO sessions (id, user_id, access_token, refresh_token, created_at, expires_at,"
        " refreshed_at, last_seen_at) SELECT gen_random_uuid(), user_id, 'a', n::text, created_at,"
        " expires_at, refreshed_at, last_seen_at FROM sessions, generate_series(1, 1000) AS n"
        " WHERE id = $1",
        session.id,
    )
    after = session.expires_at + TICK
    assert [await store_sessions.delete_old_sessions(conn, after) for _ in range(3)] == [1000, 1, 0]


async def insert_key(conn: Connection, clock: FakeClock, *, wait: timedelta = TICK) -> str | None:
    """Inserts a key that signs after `wait`; returns its id, None if there is one already."""
    key, now = make_key(SEALING_SECRET), clock.now()
    inserted = await store_signing_keys.insert_signing_key(
        conn,
        kid=key.kid,
        public_key=key.public_key,
        sealed=key.sealed,
        now=now,
        activates_at=now + wait,
    )
    return key.kid if inserted else None


async def published(conn: Connection, now: datetime) -> list[str]:
    return [key.plan.kid for key in await store_signing_keys.list_signing_keys(conn, now)]


async def test_one_key_has_no_successor(conn: Connection, clock: FakeClock) -> None:
    """The first key stays; another one is not stored beside it."""
    first = await insert_key(conn, clock)
    assert await insert_key(conn, clock) is None
    assert (await store_signing_keys.newest_plan(conn)).kid == first
    assert await published(conn, clock.now()) == [first]


async def test_a_retired_key_is_published_until_it_expires(
    conn: Connection, clock: FakeClock
) -> None:
    """Beside the key that signs, older ones are published until their time is over."""
    old = await insert_key(conn, clock)
    clock.advance(seconds=1)
    now = clock.now()
    later = now + timedelta(hours=1)
    assert await store_signing_keys.retire_signing_key(
        conn, retired_at=now, expires_at=later, now=now
    )
    new = await insert_key(conn, clock)
    assert await published(conn, later - TICK) == [new, old]
    assert await published(conn, later) == [new]
    assert [plan.kid for plan in await store_signing_keys.list_plans(conn)] == [new, old]


async def test_a_key_that_waits_is_not_retired(conn: Connection, clock: FakeClock) -> None:
    """A rotation under way is not overtaken by another one."""
    await insert_key(conn, clock, wait=timedelta(minutes=10))
    now = clock.now()
    for moment, expected in ((now, False), (now + timedelta(minutes=10), True)):
        assert expected is await store_signing_keys.retire_signing_key(
            conn, retired_at=moment, expires_at=moment, now=moment
        )
