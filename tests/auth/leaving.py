"""People who leave, and what was written about it."""

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

from chassis.callers import Caller, Kind
from chassis.ids import uuid7
from chassis.postgres import Connection
from services.auth.domain.sessions import Acr
from services.auth.domain.users import Role, User
from services.auth.service.lifecycle import LifecycleService
from tests.factories import (
    SERVICE,
    AuthRoom,
    an_address,
)
from tests.owner import make_admin
from tests.running import PASSWORD


async def register(auth: AuthRoom, email: str = "", role: Role = Role.FREE) -> User:
    user = await auth.accounts.register(email=email or an_address(), password=PASSWORD, key=None)
    if role is Role.FREE:
        return user
    if role is Role.PRO:
        return await auth.accounts.set_role(
            user_id=user.id, role=role, reason="test", actor=SERVICE, key=None
        )
    async with auth.room.database.connection() as conn:
        await make_admin(conn, user.id)
    return replace(user, role=role)


def fresh(auth: AuthRoom, user: User) -> Caller:
    """The user, who proved just now who it is."""
    return Caller(Kind.USER, user_id=user.id, acr=Acr.AAL1, auth_time=auth.room.clock.now())


async def leave(auth: AuthRoom, user: User) -> User:
    return await LifecycleService(auth.room).request_deletion(caller=fresh(auth, user))


async def stay(auth: AuthRoom, user: User) -> User:
    return await LifecycleService(auth.room).cancel_deletion(caller=fresh(auth, user))


async def mails(owner: Connection) -> list[tuple[str, str]]:
    rows = await owner.fetch(
        "SELECT payload->>'template', payload->>'to' FROM auth_outbox WHERE topic = 'mail'"
        " ORDER BY created_at, id"
    )
    return [tuple(row) for row in rows]


async def events(owner: Connection, topic: str) -> list[dict[str, Any]]:
    rows = await owner.fetch("SELECT payload FROM auth_outbox WHERE topic = $1", topic)
    return [json.loads(row["payload"]) for row in rows]


async def leave_traces(owner: Connection, user: User, now: datetime) -> None:
    """Writes what other use cases would write about somebody; registering wrote its own rows."""
    await owner.execute(
        "INSERT INTO reset_requests (id, user_id, token, requested_at, expires_at)"
        " VALUES ($1, $2, 'r', $3, $3)",
        uuid7(now),
        user.id,
        now,
    )
    await owner.execute(
        "INSERT INTO chrome_auth_links (id, device_code, user_code, client_name, user_id,"
        " created_at, expires_at, approved_at, session_id, amr, acr, authenticated_at)"
        " VALUES ($1, 'd', 'u', 'Ada''s', $2, $3::timestamptz - interval '1 s', $3, $3, $1,"
        " '{pwd}', 'aal1', $3)",
        uuid7(now),
        user.id,
        now,
    )
    await owner.execute(
        "UPDATE users SET oauth_provider = 'google', oauth_id = '42', email_verified_at = $2,"
        " banned_at = $2, ban_reason = 'rude Ada'"
        " WHERE id = $1",
        user.id,
        now,
    )


async def places_of(owner: Connection, text: str) -> set[str]:
    """Names every column of the database, as the catalogue has them, with a text in it."""
    columns = await owner.fetch(
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')"
        " AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped"
    )
    return {
        f"{table}.{column}"
        for table, column in columns
        if await owner.fetchval(
            f"SELECT true FROM {table} WHERE {column}::text ILIKE $1 LIMIT 1",  # noqa: S608
            f"%{text}%",
        )
    }
