"""What the table of device logins keeps by itself, and how it is read; all is rolled back."""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from chassis.ids import uuid7
from chassis.postgres import Connection
from services.auth.domain.devices import INTERVAL_SECONDS, LIFETIME, Approval, DeviceLogin
from services.auth.domain.sessions import Acr
from services.auth.store import devices
from tests.factories import make_user
from tests.fakes import FakeClock


async def make_login(conn: Connection, clock: FakeClock, code: str = "code") -> DeviceLogin:
    now = clock.now()
    login = DeviceLogin(uuid7(now), "Editor", "192.0.2.1", now, now + LIFETIME, INTERVAL_SECONDS)
    assert await devices.insert_login(
        conn, login, network="n", device_code=f"d-{code}", user_code=f"u-{code}"
    )
    return login


async def an_approval(conn: Connection, clock: FakeClock) -> Approval:
    user = await make_user(conn, clock)
    return Approval(user.id, uuid4(), ("pwd", "otp"), Acr.AAL2, clock.now())


async def test_a_login_is_stored_as_it_is(conn: Connection, clock: FakeClock) -> None:
    """Every statement gives back the login with all it knows."""
    login = await make_login(conn, clock)
    assert await devices.find_pending(conn, "u-code", clock.now()) == login
    assert await devices.poll(conn, "d-code", clock.now()) == login
    approval = await an_approval(conn, clock)
    approved = await devices.approve(conn, "u-code", approval, clock.now())
    assert approved is not None
    assert approved.approval == approval
    found = await devices.find_approved(conn, "u-code", approval.user_id, clock.now())
    assert found == approved
    clock.advance(seconds=INTERVAL_SECONDS)
    claimed = await devices.poll(conn, "d-code", clock.now())
    assert claimed is not None
    assert claimed.claimed_at == clock.now()
    assert await devices.find_by_device_code(conn, "d-code") == claimed


async def test_a_user_code_is_free_once_its_login_is_claimed(
    conn: Connection, clock: FakeClock
) -> None:
    """Two logins that wait never have one code; a claimed one leaves it to others."""
    await make_login(conn, clock)
    other = DeviceLogin(uuid4(), "Other", "", clock.now(), clock.now() + LIFETIME, 5)
    assert not await devices.insert_login(
        conn, other, network="n", device_code="d-2", user_code="u-code"
    )
    await devices.approve(conn, "u-code", await an_approval(conn, clock), clock.now())
    await devices.poll(conn, "d-code", clock.now())
    assert await devices.insert_login(
        conn, other, network="n", device_code="d-2", user_code="u-code"
    )


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("interval_seconds = 4", "interval_grows"),
        ("client_name = ''", "client_name_length"),
        ("client_name = repeat('x', 61)", "client_name_length"),
        ("expires_at = created_at", "expire_after_creation"),
        ("denied_at = now()", "one_answer"),
        ("session_id = NULL", "approval_has_proof"),
        ("acr = 'aal9'", "acr_is_known"),
        ("approved_at = NULL, user_id = NULL", "approval_has_proof"),
        ("user_id = NULL", "approval_is_whole"),
    ],
)
async def test_the_table_refuses_what_cannot_be(
    conn: Connection, clock: FakeClock, change: str, constraint: str
) -> None:
    """An approved login keeps its proof, its one answer and its bounds, whatever code does."""
    await make_login(conn, clock)
    await devices.approve(conn, "u-code", await an_approval(conn, clock), clock.now())
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await conn.execute(f"UPDATE chrome_auth_links SET {change}")  # noqa: S608
    assert refused.value.constraint_name == f"chrome_auth_links_{constraint}"


@dataclass
class Plans:
    """Stands where a connection does and explains what it is asked to run."""

    conn: Connection
    read: list[str] = field(default_factory=list)

    async def fetchrow(self, statement: str, *arguments: object) -> None:
        plan = await self.conn.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
        self._walk(json.loads(plan)[0]["Plan"])

    fetchval = fetchrow

    def _walk(self, node: dict[str, Any]) -> None:
        if "Index Name" in node or node["Node Type"] == "Seq Scan":
            self.read.append(node.get("Index Name", "everything"))
        for child in node.get("Plans", ()):
            self._walk(child)


async def test_every_statement_reads_an_index(conn: Connection, clock: FakeClock) -> None:
    """Among thousands of logins each statement finds its own by an index."""
    await conn.execute(
        "INSERT INTO chrome_auth_links (id, device_code, user_code, client_name, network,"
        " created_at, expires_at) SELECT gen_random_uuid(), n, n, 'x', '192.0.2.' || n % 200,"
        " $1, $2 FROM generate_series(1, 5000) AS n",
        clock.now(),
        clock.now() + timedelta(minutes=5),
    )
    await conn.execute("ANALYZE chrome_auth_links")
    plans, now = Plans(conn), clock.now()
    approval = await an_approval(conn, clock)
    await devices.poll(plans, "d", now)
    await devices.slow_down(plans, "d", now)
    await devices.find_by_device_code(plans, "d")
    await devices.find_pending(plans, "u", now)
    await devices.approve(plans, "u", approval, now)
    await devices.deny(plans, "u", now)
    await devices.find_approved(plans, "u", approval.user_id, now)
    await devices.full_until(plans, "192.0.2.1", most=20, now=now)
    assert len(plans.read) >= 8
    assert "everything" not in plans.read
