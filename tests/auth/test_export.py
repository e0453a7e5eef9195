"""The document of a user's data: everything about the person, nothing that opens a door."""

import json
from dataclasses import replace
from uuid import uuid4

import pytest

from chassis.postgres import Connection
from services.auth.domain import lifecycle as rules
from services.auth.domain.one_time import secret_of
from services.auth.domain.sessions import STEP_UP_AGE, Acr
from services.auth.domain.users import Role
from services.auth.service import mail
from services.auth.service.lifecycle import LifecycleService
from services.auth.service.mail import Mail
from services.auth.store import lifecycle as store
from services.auth.worker import erase_due
from tests.auth.leaving import fresh, leave, leave_traces, register
from tests.factories import AuthRoom, an_address, derive, log_in, make_user, reason_of
from tests.fakes import FakeClock

# What is made from a secret, or is one: column of a table of the room.
SECRETS = {
    "users": ["password_hash"],
    "sessions": ["access_token", "refresh_token"],
    "email_verifications": ["token"],
    "reset_requests": ["token"],
    "chrome_auth_links": ["device_code", "user_code"],
    "signing_keys": ["sealed_private_key", "kid"],
}
# Of the account's own row only these say nothing about a person.
UNTOLD = {"password_hash", "token_version", "tokens_revoked_at", "erased_at"}


async def test_everything_is_in_it(auth: AuthRoom, owner: Connection, clock: FakeClock) -> None:
    """Account, ways in, sessions, one-time rows, waiting mails and what administrators did."""
    user = await register(auth)
    tokens, _ = await log_in(auth, user.email)
    boss = fresh(auth, await make_user(owner, clock, role=Role.ADMIN))
    await auth.accounts.set_role(
        user_id=user.id, role=Role.PRO, reason="paid", actor=boss, key=None
    )
    await leave(auth, user)
    await leave_traces(owner, user, clock.now())
    export = await LifecycleService(auth.room).export(user.id, caller=fresh(auth, user))
    assert export.filename == f"finity-{user.id}-{clock.now():%Y-%m-%d}.json"
    data = json.loads(json.dumps(export.data))
    account = data["account"]
    assert (account["id"], account["email"], account["role"]) == (str(user.id), user.email, "pro")
    assert account["ban_reason"] == "rude Ada"
    assert data["sign_in_methods"] == ["password", "google"]
    (session,) = data["sessions"]
    assert (session["id"], session["end_reason"]) == (str(tokens.session.id), "account_deleted")
    assert [link["client_name"] for link in data["chrome_auth_links"]] == ["Ada's"]
    assert len(data["email_verifications"]) == len(data["reset_requests"]) == 1
    assert sorted(waiting["kind"] for waiting in data["pending_mails"]) == [
        "account_deletion_requested",
        "email_verification",
    ]
    (entry,) = data["admin_log"]
    assert (entry["action"], entry["by"], entry["details"]["reason"]) == (
        "set_role",
        "user",
        "paid",
    )
    assert str(boss.user_id) not in json.dumps(data)
    assert data["omitted"] == {}


async def test_no_secret_is_in_it(auth: AuthRoom, owner: Connection, clock: FakeClock) -> None:
    """No hash, digest, token, code or key, nor what a mail would carry of a row."""
    user = await register(auth)
    tokens, _ = await log_in(auth, user.email)
    row = uuid4()
    asked = Mail("reset_password", user.email, one_time=row, about=user.id)
    async with auth.room.database.transaction() as conn:
        await mail.enqueue(conn, asked, clock.now())
    await leave_traces(owner, user, clock.now())
    await owner.execute(
        "UPDATE chrome_auth_links SET device_code = 'device-digest', user_code = 'BCDF-GHJK'"
    )
    await owner.execute("UPDATE email_verifications SET token = 'verify-digest'")
    await owner.execute("UPDATE reset_requests SET token = 'reset-digest'")
    found = [tokens.access_token, tokens.refresh_token, str(row)]
    found.append(secret_of(derive("one-time"), row))
    for table, columns in SECRETS.items():
        for column in columns:
            value = await owner.fetchval(f"SELECT {column}::text FROM {table}")  # noqa: S608
            assert value, f"{table}.{column}"
            found.append(value)
    export = await LifecycleService(auth.room).export(user.id, caller=fresh(auth, user))
    said = json.dumps(export.data)
    assert [secret for secret in found if secret in said] == []


async def test_somebody_else_s_export_is_logged(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """An administrator who reads a person's data leaves a trace that the person can read."""
    user = await register(auth)
    lifecycle = LifecycleService(auth.room)
    await lifecycle.export(user.id, caller=fresh(auth, user))
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") == 0
    admin = fresh(auth, await make_user(owner, clock, role=Role.ADMIN))
    await lifecycle.export(user.id, caller=admin)
    row = await owner.fetchrow("SELECT actor, action, target_user_id FROM admin_logs")
    assert tuple(row) == (admin.key, "export_user_data", user.id)
    later = await lifecycle.export(user.id, caller=fresh(auth, user))
    assert [entry["action"] for entry in later.data["admin_log"]] == ["export_user_data"]


async def test_what_is_beyond_the_bound_is_counted(
    auth: AuthRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest records are in the document, and it says how many are not."""
    user = await register(auth)
    opened = [(await log_in(auth, user.email))[0].session.id for _ in range(5)]
    monkeypatch.setattr("services.auth.service.lifecycle.EXPORTED_RECORDS", 2)
    assert rules.EXPORTED_RECORDS == 5000
    export = await LifecycleService(auth.room).export(user.id, caller=fresh(auth, user))
    newest = {session["id"] for session in export.data["sessions"]}
    assert newest < {str(session_id) for session_id in opened}
    assert export.data["omitted"] == {"sessions": 3}


async def test_reading_needs_a_fresh_proof(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """Of the user and of an administrator, with a second factor where there is one."""
    user, boss = await register(auth), await make_user(owner, clock, role=Role.ADMIN)
    lifecycle = LifecycleService(auth.room)
    for reader in (user, boss):
        old = fresh(auth, reader)
        clock.advance(seconds=STEP_UP_AGE.total_seconds(), microseconds=1)
        assert await reason_of(lifecycle.export(user.id, caller=old)) == "STEP_UP_REQUIRED"
        await owner.execute("UPDATE users SET mfa_enabled_at = now() WHERE id = $1", reader.id)
        one = fresh(auth, reader)
        assert await reason_of(lifecycle.export(user.id, caller=one)) == "STEP_UP_REQUIRED"
        await lifecycle.export(user.id, caller=replace(one, acr=Acr.AAL2))
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") == 1


async def test_who_is_no_administrator_any_more_reads_nobody(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """A token from before the demotion is not enough, and leaves no trace."""
    user, boss = await register(auth), await make_user(owner, clock, role=Role.ADMIN)
    await owner.execute("UPDATE users SET role = 'pro' WHERE id = $1", boss.id)
    caller = replace(fresh(auth, boss), role="admin")
    export = LifecycleService(auth.room).export(user.id, caller=caller)
    assert await reason_of(export) == "ACCESS_DENIED"
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") == 0


async def test_nobody_and_an_erased_user_have_no_data(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    user = await register(auth, an_address())
    lifecycle = LifecycleService(auth.room)
    await leave(auth, user)
    clock.advance(days=14)
    await erase_due(lifecycle)
    admin = fresh(auth, await make_user(owner, clock, role=Role.ADMIN))
    for user_id in (user.id, uuid4()):
        assert await reason_of(lifecycle.export(user_id, caller=admin)) == "USER_NOT_FOUND"
    itself = lifecycle.export(user.id, caller=fresh(auth, user))
    assert await reason_of(itself) == "USER_NOT_FOUND"


async def test_no_table_about_users_is_forgotten(conn: Connection) -> None:
    """Each table of the room that points at users is exported and erased."""
    rows = await conn.fetch(
        "SELECT DISTINCT c.conrelid::regclass::text AS name FROM pg_constraint c"
        " JOIN pg_class t ON t.oid = c.conrelid WHERE c.contype = 'f'"
        " AND c.confrelid = 'users'::regclass"
        " AND pg_get_userbyid(t.relowner) = 'finity_auth_owner'"
    )
    assert {row["name"] for row in rows} == set(store.PERSONAL)


async def test_no_column_of_an_account_is_forgotten(auth: AuthRoom, owner: Connection) -> None:
    """Each column of users is in the document, but for those that say nothing of a person."""
    user = await register(auth)
    export = await LifecycleService(auth.room).export(user.id, caller=fresh(auth, user))
    rows = await owner.fetch(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name = 'users'"
    )
    assert {row["column_name"] for row in rows} - UNTOLD == set(export.data["account"]) - {
        "has_password"
    }
