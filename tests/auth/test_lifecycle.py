"""The end of accounts as use cases over a database of the test's own."""

import json
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from grpc import aio

from chassis import idempotency
from chassis.outbox import Event
from chassis.postgres import Connection, Database
from services.auth.domain.lifecycle import erased_email
from services.auth.domain.sessions import STEP_UP_AGE
from services.auth.domain.users import Role
from services.auth.passwords import Passwords
from services.auth.peers import Usage
from services.auth.service.lifecycle import LifecycleService
from services.auth.store import lifecycle as store
from services.auth.worker import erase_due, sweep
from tests.auth.leaving import (
    events,
    fresh,
    leave,
    leave_traces,
    mails,
    places_of,
    register,
    stay,
)
from tests.factories import (
    GRACE,
    MEANS,
    AuthRoom,
    an_address,
    at_once,
    log_in,
    open_auth,
    reason_of,
)
from tests.fakes import FakeClock
from tests.running import PASSWORD

# Columns of users that an erasure leaves; the others must be empty or say nothing of a person.
KEPT = {"id", "created_at", "deletion_requested_at", "erasure_due_at", "erased_at"}
IMPERSONAL = {"role": "free", "token_version": 2}
REQUESTED = "account_deletion_requested"


@pytest.mark.parametrize("token", ["", "an-invite_token-0123"])
async def test_an_invitation_travels_with_the_announcement(
    auth: AuthRoom, owner: Connection, token: str
) -> None:
    """user_registered carries the token somebody came with, and no field without one."""
    user = await auth.accounts.register(
        email=an_address(), password=PASSWORD, key=None, invite_token=token
    )
    announced = {"user_id": str(user.id)} | ({"invite_token": token} if token else {})
    assert await events(owner, "user_registered") == [announced]


async def test_asking_ends_every_session_and_tells_the_owner(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """The account has a day, its sessions are revoked, its owner has a mail that names the day."""
    user = await register(auth)
    opened = [(await log_in(auth, user.email))[0].session.id for _ in range(3)]
    pending = await leave(auth, user)
    assert (pending.deletion_requested_at, pending.erasure_due_at) == (
        clock.now(),
        clock.now() + GRACE,
    )
    assert sorted(auth.announced[-1].sessions) == sorted(opened)
    rows = await owner.fetch("SELECT DISTINCT end_reason, ended_by FROM sessions")
    assert [tuple(row) for row in rows] == [("account_deleted", f"user:{user.id}")]
    # Written in the same instant, the mail of the registration may come first or second.
    assert sorted(await mails(owner)) == [
        (REQUESTED, user.email),
        ("email_verification", user.email),
    ]
    values = {mail["template"]: mail["values"] for mail in await events(owner, "mail")}
    told = values[REQUESTED]["erased_at"]
    assert told == (clock.now() + GRACE).isoformat()


async def test_asking_needs_a_fresh_proof(auth: AuthRoom, clock: FakeClock) -> None:
    """A stolen access token alone deletes nothing."""
    user = await register(auth)
    stale = fresh(auth, user)
    clock.advance(seconds=STEP_UP_AGE.total_seconds() + 1)
    asked = LifecycleService(auth.room).request_deletion(caller=stale)
    assert await reason_of(asked) == "STEP_UP_REQUIRED"
    assert (await auth.accounts.get_user(user.id)).deletion_requested_at is None


async def test_the_grace_may_be_spent_and_ended(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """Who logs in during the grace sees that it runs, and may end it; asking again moves no day."""
    user = await register(auth)
    day = (await leave(auth, user)).erasure_due_at
    clock.advance(days=1)
    _, found = await log_in(auth, user.email)
    assert found.erasure_due_at == day
    assert (await leave(auth, user)).erasure_due_at == day
    assert await owner.fetchval("SELECT count(*) FROM sessions WHERE ended_at IS NULL") == 0
    kept = await stay(auth, user)
    assert (kept.deletion_requested_at, kept.erasure_due_at) == (None, None)
    assert await stay(auth, user) == kept
    clock.advance(days=GRACE.days)
    assert await erase_due(LifecycleService(auth.room)) == 0
    assert [template for template, _ in await mails(owner)].count(REQUESTED) == 1


async def test_the_day_that_was_told_holds(
    auth: AuthRoom, auth_database: Database, clock: FakeClock
) -> None:
    """A shorter grace set later erases nobody sooner; one of none is due at once."""
    user, other = await register(auth), await register(auth)
    day = (await leave(auth, user)).erasure_due_at
    async with open_auth(auth_database, clock) as later:
        object.__setattr__(later.room, "deletion_grace", timedelta(0))
        assert (await leave(later, user)).erasure_due_at == day
        assert (await leave(later, other)).erasure_due_at == clock.now()
        assert await erase_due(LifecycleService(later.room)) == 1
    assert (await auth.accounts.get_user(user.id)).erased_at is None


async def test_the_last_administrator_does_not_leave(auth: AuthRoom) -> None:
    """Not while nobody else who stays has the role; who is leaving does not count as one."""
    ada, bob = await register(auth, role=Role.ADMIN), await register(auth, role=Role.ADMIN)
    await leave(auth, ada)
    assert await reason_of(leave(auth, bob)) == "LAST_ADMIN"
    demotion = auth.accounts.set_role(
        user_id=bob.id, role=Role.FREE, reason="test", actor=fresh(auth, bob), key=None
    )
    assert await reason_of(demotion) == "LAST_ADMIN"
    await stay(auth, ada)
    await leave(auth, bob)


async def test_nothing_of_an_erased_person_is_left(
    auth: AuthRoom, auth_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """The row stays for the ledgers; no table has the address, the name or a way in any more."""
    user = await register(auth, "ada.lovelace@example.com")
    await auth.sessions.login(email=user.email, password=PASSWORD, means=MEANS, key=None)
    await leave(auth, user)
    await leave_traces(owner, user, clock.now())
    clock.advance(days=GRACE.days)
    assert await erase_due(LifecycleService(auth.room)) == 1

    row = json.loads(await owner.fetchval("SELECT to_jsonb(u) FROM users u"))
    assert row.pop("email").startswith("erased-")
    assert {name: row.pop(name) for name in IMPERSONAL} == IMPERSONAL
    assert row.pop("tokens_revoked_at") == row["erased_at"]
    assert {name for name, value in row.items() if value is not None} == KEPT
    for table in store.PERSONAL:
        assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 0, table  # noqa: S608
    # The last mail goes to the address there was, and with it the address.
    assert await mails(owner) == [("account_deleted", user.email)]
    await owner.execute("UPDATE auth_deliveries SET state = 'done'")
    clock.advance(seconds=idempotency.KEPT.total_seconds() + 1)
    # The last mail, what usage was told twice, and the keyed hash mails were counted for.
    assert await sweep(auth_database, clock) == 4
    for trace in ("lovelace", "google", "rude", "ada's"):
        assert await places_of(owner, trace) == set(), trace


async def test_other_rooms_and_verifiers_are_told(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """The event is written with the row; access tokens end everywhere."""
    user = await register(auth)
    await leave(auth, user)
    clock.advance(days=GRACE.days)
    tokens, _ = await log_in(auth, user.email)
    await erase_due(LifecycleService(auth.room))
    assert await events(owner, "user_erased") == [{"user_id": str(user.id)}]
    together = await owner.fetchval(
        "SELECT u.xmin::text = o.xmin::text AND o.xmin::text = d.xmin::text"
        " FROM users u, auth_outbox o JOIN auth_deliveries d ON d.event_id = o.id"
        " WHERE o.topic = 'user_erased' AND d.consumer = 'usage'"
    )
    assert together
    assert auth.announced[-1].versions == [(user.id, 2)]
    assert await reason_of(auth.verifier.verify(tokens.access_token)) == "TOKEN_REVOKED"
    assert await reason_of(auth.sessions.refresh(tokens.refresh_token)) == "REFRESH_TOKEN_INVALID"
    clock.advance(minutes=1, seconds=1)
    assert (user.id, 2) in (await auth.authority.revocations(None)).versions


async def test_an_erased_account_is_as_one_that_never_was(
    auth: AuthRoom, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login costs one verification and says LOGIN_FAILED; the address may be registered again."""
    verified: list[bool] = []
    verify = Passwords.verify

    async def counted(passwords: Passwords, password: str, hashed: str | None) -> bool:
        verified.append(hashed is None)
        return await verify(passwords, password, hashed)

    user = await register(auth)
    await leave(auth, user)
    clock.advance(days=GRACE.days)
    await erase_due(LifecycleService(auth.room))
    monkeypatch.setattr(Passwords, "verify", counted)
    refusals = await at_once(2, lambda index: log_in(auth, (user.email, an_address())[index]))
    known, unknown = refusals
    assert (known.reason, known.message, known.metadata, known.retry_after) == (
        "LOGIN_FAILED",
        unknown.message,
        unknown.metadata,
        unknown.retry_after,
    )
    assert verified == [True, True]
    for call in (leave(auth, user), stay(auth, user)):
        assert await reason_of(call) == "USER_NOT_FOUND"
    assert (await register(auth, user.email)).id != user.id


async def test_an_erased_account_has_no_way_in(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """Whatever the code does, the table refuses a password for it."""
    user = await register(auth)
    await leave(auth, user)
    clock.advance(days=GRACE.days)
    await erase_due(LifecycleService(auth.room))
    with pytest.raises(asyncpg.CheckViolationError, match="users_erased_has_no_way_in"):
        await owner.execute("UPDATE users SET password_hash = 'x'")


def test_an_erased_address_is_one_nobody_can_take_first() -> None:
    """It is lower case, without blanks, short enough, and not made from the user's id."""
    address = erased_email(uuid4())
    assert address == address.lower()
    assert len(address) <= 254
    assert address.endswith("@erased.invalid")


async def test_a_backlog_goes_in_batches(auth: AuthRoom, clock: FakeClock) -> None:
    """More accounts than a batch holds are erased by the next ones, each once."""
    for _ in range(23):
        await leave(auth, await register(auth))
    clock.advance(days=GRACE.days)
    lifecycle = LifecycleService(auth.room)
    assert [await erase_due(lifecycle) for _ in range(3)] == [20, 3, 0]


async def test_one_account_s_defect_keeps_no_other(
    auth: AuthRoom, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be erased stays whole and is tried again; the others go."""
    stuck, user = await register(auth), await register(auth)
    for leaving in (stuck, user):
        await leave(auth, leaving)
    clock.advance(days=GRACE.days)
    delete = store.delete_personal

    async def fail(conn: Connection, user_id: UUID) -> None:
        if user_id == stuck.id:
            raise RuntimeError("a row that nobody expected")
        await delete(conn, user_id)

    lifecycle = LifecycleService(auth.room)
    with monkeypatch.context() as defect:
        defect.setattr(store, "delete_personal", fail)
        assert await erase_due(lifecycle) == 1
    assert (await auth.accounts.get_user(stuck.id)).email == stuck.email
    assert (await auth.accounts.get_user(user.id)).erased_at == clock.now()
    assert await erase_due(lifecycle) == 1


async def test_what_usage_does_not_know_is_a_defect() -> None:
    """A topic without a call is never taken for delivered."""
    async with aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(ValueError, match="usage takes no user_renamed"):
            await Usage(channel).deliver(Event(uuid4(), "user_renamed", {}))
