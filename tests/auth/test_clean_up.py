"""What is long over goes by itself, in small batches, and by an index."""

import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from chassis import outbox
from chassis.idempotency import KEPT
from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from services.auth.domain.mfa import ENROLMENT_LIFE
from services.auth.service import mail
from services.auth.service.mail import Mail
from services.auth.store import lifecycle as store
from services.auth.store import mfa as store_mfa
from services.auth.worker import sweep
from tests.auth.factors import Factors
from tests.auth.leaving import leave, register
from tests.factories import AuthRoom, at_once, make_user
from tests.fakes import FakeClock

TICK = timedelta(microseconds=1)
ROWS = 5000
# Tables with expires_at that have a rule of their own.
OWN_RULE = {"sessions"}
INSERT = {
    "email_verifications": "INSERT INTO email_verifications (id, user_id, token, created_at,"
    " expires_at, superseded_at)"
    " SELECT id, $2, id::text, $3, $3, $3 FROM unnest($1::uuid[]) AS id",
    "email_sign_ins": "INSERT INTO email_sign_ins (id, user_id, token, email, created_at,"
    " expires_at, superseded_at)"
    " SELECT id, $2, id::text, 'e', $3, $3, $3 FROM unnest($1::uuid[]) AS id",
    "reset_requests": "INSERT INTO reset_requests (id, user_id, token, requested_at,"
    " expires_at, superseded_at)"
    " SELECT id, $2, id::text, $3, $3, $3 FROM unnest($1::uuid[]) AS id",
    "oauth_flows": "INSERT INTO oauth_flows (id, provider, purpose, user_id, flow, state,"
    " redirect_uri, created_at, expires_at) SELECT id, 'p', 'link', $2, id::text, 's', 'r',"
    " $3::timestamptz - interval '1 s', $3 FROM unnest($1::uuid[]) AS id",
    "signing_keys": "INSERT INTO signing_keys (kid, public_key, sealed_private_key, created_at,"
    " retired_at, expires_at) SELECT id::text, sha256(''), $2::uuid::text::bytea, $3, $3, $3"
    " FROM unnest($1::uuid[]) AS id",
    "mfa_challenges": "INSERT INTO mfa_challenges (id, purpose, user_id, expires_at)"
    " SELECT id, 'sign_in', $2, $3 FROM unnest($1::uuid[]) AS id",
    "chrome_auth_links": "INSERT INTO chrome_auth_links (id, device_code, user_code, client_name,"
    " user_id, created_at, expires_at, approved_at, session_id, amr, acr, authenticated_at)"
    " SELECT id, id::text, id::text, 'c', $2, $3::timestamptz - interval '1 s', $3, $3, id,"
    " '{pwd}', 'aal1', $3 FROM unnest($1::uuid[]) AS id",
}


async def fill(
    owner: Connection, table: str, user_id: UUID, expires: datetime, count: int = 1
) -> None:
    await owner.execute(INSERT[table], [uuid7(expires) for _ in range(count)], user_id, expires)


@pytest.mark.parametrize(("table", "kept"), store.EXPIRING.items())
async def test_rows_go_when_they_are_long_over(  # noqa: PLR0917 - fixtures
    auth: AuthRoom,
    auth_database: Database,
    owner: Connection,
    clock: FakeClock,
    table: str,
    kept: timedelta,
) -> None:
    """Neither sooner nor later than their table's time, whatever became of them."""
    user = await register(auth)
    await fill(owner, table, user.id, clock.now())
    await fill(owner, table, user.id, clock.now() + TICK)
    clock.advance(seconds=kept.total_seconds())
    before = await owner.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608
    await sweep(auth_database, clock)
    assert await owner.fetchval(f"SELECT count(*) FROM {table}") == before  # noqa: S608
    clock.advance(microseconds=1)
    await sweep(auth_database, clock)
    assert await owner.fetchval(f"SELECT count(*) FROM {table}") == before - 1  # noqa: S608


async def test_every_table_that_expires_is_swept(conn: Connection) -> None:
    """A table of the room with expires_at is in the sweep or has a rule of its own."""
    rows = await conn.fetch(
        "SELECT c.relname AS name FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " WHERE a.attname = 'expires_at' AND c.relkind = 'r'"
        " AND pg_get_userbyid(c.relowner) = 'finity_auth_owner'"
    )
    assert {row["name"] for row in rows} == {*store.EXPIRING, *OWN_RULE}


async def test_sweepers_share_a_backlog(
    auth_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Several take different rows, wait for nobody, and leave none behind."""
    # Not registered: that would write rows of its own.
    user = await make_user(owner, clock)
    for table in store.EXPIRING:
        await fill(owner, table, user.id, clock.now(), ROWS)
    clock.advance(days=4)
    swept = await at_once(8, lambda _: sweep(auth_database, clock))
    while more := await sweep(auth_database, clock):
        swept.append(more)
    assert sum(swept) == len(store.EXPIRING) * ROWS
    # A batch of each table at most, beside idempotency keys and sessions, of which there are none.
    assert max(swept) <= len(store.EXPIRING) * 1000


async def deliver(owner: Connection, template: str, state: str) -> None:
    await owner.execute(
        "UPDATE auth_deliveries SET state = $2 WHERE event_id ="
        " (SELECT id FROM auth_outbox WHERE payload->>'template' = $1)",
        template,
        state,
    )


async def test_mails_go_72_hours_after_they_were_written(
    auth: AuthRoom, auth_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Sent and dead ones go; one that is still to be sent stays."""
    user = await register(auth)
    async with auth_database.transaction() as conn:
        for template in ("sent", "dead", "waiting"):
            await mail.enqueue(conn, Mail(template, user.email, about=user.id), clock.now())
    await deliver(owner, "sent", "done")
    await deliver(owner, "dead", "dead")
    clock.advance(seconds=KEPT.total_seconds())
    assert await sweep(auth_database, clock) == 0
    clock.advance(microseconds=1)
    assert await sweep(auth_database, clock) == 2
    rows = await owner.fetch("SELECT coalesce(payload->>'template', topic) FROM auth_outbox")
    assert {row[0] for row in rows} == {"waiting", "email_verification", "user_registered"}
    assert await owner.fetchval("SELECT count(*) FROM auth_deliveries") == 3


async def test_other_events_go_when_every_consumer_has_them(
    auth: AuthRoom, auth_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """72 hours later, and never while a delivery is due, nor dead: it may be tried again."""
    states = ("done", "due", "dead")
    async with auth_database.transaction() as conn:
        for state in states:
            event = await outbox.enqueue(
                conn, "auth", state, {}, ["usage", "other"], now=clock.now()
            )
            change = "UPDATE auth_deliveries SET state = $2 WHERE event_id = $1 AND consumer = $3"
            await conn.execute(change, event, "done", "usage")
            await conn.execute(change, event, state, "other")
    clock.advance(seconds=KEPT.total_seconds())
    assert await sweep(auth_database, clock) == 0
    clock.advance(microseconds=1)
    assert await sweep(auth_database, clock) == 1
    left = await owner.fetch("SELECT topic FROM auth_outbox ORDER BY topic")
    assert [row["topic"] for row in left] == ["dead", "due"]
    assert await owner.fetchval("SELECT count(*) FROM auth_deliveries") == 4


async def test_an_app_that_nobody_confirmed_goes(
    auth: AuthRoom, auth_database: Database, owner: Connection, clock: FakeClock, factors: Factors
) -> None:
    """When it can be confirmed no more; a confirmed one stays however old it is."""
    waiting, confirmed = await factors.somebody(), await factors.somebody()
    await confirmed.enrol()
    await factors.mfa.enrol_totp(waiting.caller)
    clock.advance(seconds=ENROLMENT_LIFE.total_seconds())
    await sweep(auth_database, clock)
    assert await owner.fetchval("SELECT count(*) FROM mfa_totp") == 2
    clock.advance(microseconds=1)
    await sweep(auth_database, clock)
    assert await owner.fetch("SELECT user_id FROM mfa_totp") == [(confirmed.user.id,)]


async def test_a_key_that_signs_stays(
    auth: AuthRoom, auth_database: Database, clock: FakeClock
) -> None:
    """Years later the one key there is still signs; only keys that have a successor ever expire."""
    clock.advance(days=4000)
    await sweep(auth_database, clock)
    await auth.signer.load()
    assert len(auth.signer.published()) == 1


async def test_the_outbox_is_still_insert_only(
    auth: AuthRoom, auth_database: Database, clock: FakeClock
) -> None:
    """What serves cannot delete an event itself, and the functions take none that is owed."""
    user = await register(auth)

    async def delete() -> None:
        async with auth_database.transaction() as conn:
            await conn.execute("DELETE FROM auth_outbox")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await delete()
    async with auth_database.transaction() as conn:
        await store.forget_mail_to(conn, str(user.id))
        assert await store.forget_old_mail(conn, clock.now() + KEPT, 10) == 0
        assert await store.forget_old_events(conn, clock.now() + KEPT, 10) == 0
        # That somebody registered, and the mail to verify the address, which waits.
        assert await conn.fetchval("SELECT count(*) FROM auth_outbox") == 2


class Explainer:
    """Stands where a connection does and explains what it is asked to run."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self.scans: list[tuple[str, str, str]] = []

    async def explain(self, statement: str, *arguments: object) -> None:
        found = await self._conn.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
        self._walk(json.loads(found)[0]["Plan"])

    async def fetchval(self, statement: str, *arguments: object) -> int:
        await self.explain(statement, *arguments)
        return 0

    async def fetch(self, statement: str, *arguments: object) -> list[Any]:
        await self.explain(statement, *arguments)
        return []

    def sequential(self) -> list[str]:
        return [table for kind, table, _ in self.scans if kind == "Seq Scan"]

    def indexes(self) -> set[str]:
        return {index for _, _, index in self.scans if index}

    def _walk(self, node: dict[str, Any]) -> None:
        if "Relation Name" in node or "Index Name" in node:
            table = node.get("Relation Name", "")
            self.scans.append((node["Node Type"], table, node.get("Index Name", "")))
        for child in node.get("Plans", ()):
            self._walk(child)


@pytest.mark.parametrize("table", store.EXPIRING)
async def test_the_sweep_reads_an_index(
    auth: AuthRoom, owner: Connection, clock: FakeClock, table: str
) -> None:
    """Few expired rows among many are found by their time, without reading the table."""
    user = await register(auth)
    await fill(owner, table, user.id, clock.now() + timedelta(days=9), ROWS)
    await fill(owner, table, user.id, clock.now() - timedelta(days=9), 20)
    await owner.execute(f"ANALYZE {table}")
    explainer = Explainer(owner)
    await store.delete_expired(explainer, table, clock.now(), 1000)
    assert explainer.sequential() == []
    assert f"{table}_expires_at_idx" in explainer.indexes()


async def test_who_is_due_is_found_by_an_index(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """However many accounts there are, the list reads those whose day has come."""
    await leave(auth, await register(auth))
    await owner.execute(
        "INSERT INTO users (id, email, created_at)"
        " SELECT id, id || '@example.com', $2 FROM unnest($1::uuid[]) AS id",
        [uuid7(clock.now()) for _ in range(ROWS)],
        clock.now(),
    )
    await owner.execute("ANALYZE users")
    explainer = Explainer(owner)
    await store.list_due(explainer, clock.now() + timedelta(days=15), 20)
    assert explainer.sequential() == []
    assert explainer.indexes() == {"users_erasure_due_at_idx"}


async def test_an_app_nobody_confirmed_is_found_by_an_index(
    owner: Connection, clock: FakeClock
) -> None:
    """However many people have an app, the sweep reads those that wait."""
    ids = [uuid7(clock.now()) for _ in range(ROWS)]
    await owner.execute(
        "INSERT INTO users (id, email, created_at)"
        " SELECT id, id || '@example.com', $2 FROM unnest($1::uuid[]) AS id",
        ids,
        clock.now(),
    )
    await owner.execute(
        "INSERT INTO mfa_totp (user_id, id, sealed_secret, created_at, confirmed_at)"
        " SELECT id, id, '', $2, $2 FROM unnest($1::uuid[]) AS id",
        ids,
        clock.now(),
    )
    await owner.execute("ANALYZE mfa_totp")
    explainer = Explainer(owner)
    await store_mfa.delete_unconfirmed(explainer, clock.now(), 1000)
    assert explainer.sequential() == []
    assert "mfa_totp_unconfirmed_idx" in explainer.indexes()


@pytest.mark.parametrize(
    ("function", "index"),
    [
        ("auth_forget_old_mail", "auth_outbox_mail_created_at_idx"),
        ("auth_forget_old_events", "auth_outbox_event_created_at_idx"),
        ("auth_forget_mail_to", "auth_outbox_mail_to_idx"),
        ("auth_forget_mail_about", "auth_outbox_mail_about_idx"),
    ],
)
async def test_events_are_found_by_an_index(
    owner: Connection, clock: FakeClock, function: str, index: str
) -> None:
    """The functions read no more of the outbox than they delete."""
    await owner.execute(
        "INSERT INTO auth_outbox (id, topic, payload, created_at)"
        " SELECT id, CASE WHEN get_byte(uuid_send(id), 15) < 10 THEN 'mail' ELSE 'user_registered'"
        " END, jsonb_build_object('to', id, 'about', id), $2 FROM unnest($1::uuid[]) AS id",
        [uuid7(clock.now()) for _ in range(ROWS)],
        clock.now(),
    )
    await owner.execute("ANALYZE auth_outbox")
    body: str = await owner.fetchval("SELECT prosrc FROM pg_proc WHERE proname = $1", function)
    explainer = Explainer(owner)
    for name, value in (
        ("written_before", "now() - interval '1 year'"),
        ("most", "10"),
        ("= address", "= 'a'"),
        ("= who", "= 'a'"),
    ):
        body = body.replace(name, value)
    await explainer.explain(body)
    assert [table for table in explainer.sequential() if table == "auth_outbox"] == []
    assert index in explainer.indexes()
