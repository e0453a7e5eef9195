"""Logins of plugins and devices; the table keeps the product's name for them."""

from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection
from services.auth.domain.devices import SLOWER_SECONDS, Approval, DeviceLogin
from services.auth.domain.sessions import Acr

_LOGIN = (
    "id, client_name, address, created_at, expires_at, interval_seconds, user_id, session_id, amr,"
    " acr, authenticated_at, denied_at, claimed_at"
)
# A login that a poll may still find alive.
_ALIVE = "claimed_at IS NULL AND denied_at IS NULL AND expires_at > $2"


async def lock_network(conn: Connection, network: str) -> None:
    """Lets the logins of one network start one after the other, until the transaction ends."""
    await conn.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('chrome_auth_links:' || $1, 0))", network
    )


async def full_until(
    conn: Connection, network: str, *, most: int, now: datetime
) -> datetime | None:
    """Returns until when `most` logins of a network wait; None if there are fewer."""
    return await conn.fetchval(  # type: ignore[no-any-return]
        "SELECT expires_at FROM chrome_auth_links"
        " WHERE network = $1 AND claimed_at IS NULL AND expires_at > $2"
        " ORDER BY expires_at DESC OFFSET $3 - 1 LIMIT 1",
        network,
        now,
        most,
    )


async def insert_login(
    conn: Connection, login: DeviceLogin, *, network: str, device_code: str, user_code: str
) -> bool:
    """
    Inserts a login by the digests of its codes; False if another one has the user code.

    `network` is what its address counts as.
    """
    return bool(
        await conn.fetchval(
            "INSERT INTO chrome_auth_links (id, device_code, user_code, client_name, address,"
            " network, interval_seconds, created_at, expires_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
            " ON CONFLICT (user_code) WHERE claimed_at IS NULL DO NOTHING RETURNING true",
            login.id,
            device_code,
            user_code,
            login.client_name,
            login.address,
            network,
            login.interval_seconds,
            login.created_at,
            login.expires_at,
        )
    )


async def poll(conn: Connection, device_code: str, now: datetime) -> DeviceLogin | None:
    """
    Polls a login and claims it if it is approved; None if it is too early or the login is over.

    One statement: of polls that come together one is on time, of claims one is the first.
    """
    row = await conn.fetchrow(
        "UPDATE chrome_auth_links SET last_polled_at = $2,"
        " claimed_at = CASE WHEN approved_at IS NOT NULL THEN $2 END"
        f" WHERE device_code = $1 AND {_ALIVE} AND (last_polled_at IS NULL"
        "  OR last_polled_at + interval_seconds * interval '1 second' <= $2)"
        f" RETURNING {_LOGIN}",
        device_code,
        now,
    )
    return _login(row) if row else None


async def slow_down(conn: Connection, device_code: str, now: datetime) -> DeviceLogin | None:
    """Lengthens the interval of a login that was polled too early; None if it is over."""
    row = await conn.fetchrow(
        "UPDATE chrome_auth_links SET last_polled_at = $2, interval_seconds = interval_seconds + $3"
        f" WHERE device_code = $1 AND {_ALIVE} RETURNING {_LOGIN}",
        device_code,
        now,
        SLOWER_SECONDS,
    )
    return _login(row) if row else None


async def find_by_device_code(conn: Connection, device_code: str) -> DeviceLogin | None:
    row = await conn.fetchrow(
        f"SELECT {_LOGIN} FROM chrome_auth_links WHERE device_code = $1", device_code
    )
    return _login(row) if row else None


async def find_pending(conn: Connection, user_code: str, now: datetime) -> DeviceLogin | None:
    row = await conn.fetchrow(
        f"SELECT {_LOGIN} FROM chrome_auth_links"
        f" WHERE user_code = $1 AND {_ALIVE} AND approved_at IS NULL",
        user_code,
        now,
    )
    return _login(row) if row else None


async def approve(
    conn: Connection, user_code: str, approval: Approval, now: datetime
) -> DeviceLogin | None:
    """Approves a login that nobody has answered; None if there is none."""
    row = await conn.fetchrow(
        "UPDATE chrome_auth_links SET approved_at = $2, user_id = $3, session_id = $4, amr = $5,"
        " acr = $6, authenticated_at = $7"
        f" WHERE user_code = $1 AND {_ALIVE} AND approved_at IS NULL RETURNING {_LOGIN}",
        user_code,
        now,
        approval.user_id,
        approval.session_id,
        approval.amr,
        approval.acr,
        approval.authenticated_at,
    )
    return _login(row) if row else None


async def find_approved(
    conn: Connection, user_code: str, user_id: UUID, now: datetime
) -> DeviceLogin | None:
    """Returns the login that a user approved with a code, claimed or not, until it is over."""
    row = await conn.fetchrow(
        f"SELECT {_LOGIN} FROM chrome_auth_links"
        " WHERE user_code = $1 AND user_id = $3 AND expires_at > $2 ORDER BY id DESC LIMIT 1",
        user_code,
        now,
        user_id,
    )
    return _login(row) if row else None


async def deny(conn: Connection, user_code: str, now: datetime) -> DeviceLogin | None:
    """Denies a login that nobody approved, once more if need be; None if there is none."""
    row = await conn.fetchrow(
        "UPDATE chrome_auth_links SET denied_at = coalesce(denied_at, $2)"
        " WHERE user_code = $1 AND claimed_at IS NULL AND approved_at IS NULL AND expires_at > $2"
        f" RETURNING {_LOGIN}",
        user_code,
        now,
    )
    return _login(row) if row else None


def _login(row: Record) -> DeviceLogin:
    approval = None
    if row["user_id"] is not None:
        approval = Approval(
            user_id=row["user_id"],
            session_id=row["session_id"],
            amr=tuple(row["amr"]),
            acr=Acr(row["acr"]),
            authenticated_at=row["authenticated_at"],
        )
    return DeviceLogin(
        id=row["id"],
        client_name=row["client_name"],
        address=row["address"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        interval_seconds=row["interval_seconds"],
        approval=approval,
        denied_at=row["denied_at"],
        claimed_at=row["claimed_at"],
    )
