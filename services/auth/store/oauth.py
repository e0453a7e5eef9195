"""Identities at providers, and sign-ins under way there."""

from datetime import datetime
from uuid import UUID

from asyncpg import Record

from chassis.postgres import Connection
from services.auth.domain.oauth import Flow, Identity, Proof, Purpose
from services.auth.errors import IdentityAlreadyLinked

_FLOW = "id, provider, purpose, user_id, redirect_uri, created_at, expires_at"
_IDENTITY = "id, user_id, provider, subject, email, created_at, last_used_at"


async def insert_flow(conn: Connection, flow: Flow, *, flow_digest: str, state_digest: str) -> None:
    await conn.execute(
        f"INSERT INTO oauth_flows ({_FLOW}, flow, state)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        flow.id,
        flow.provider,
        flow.purpose,
        flow.user_id,
        flow.redirect_uri,
        flow.created_at,
        flow.expires_at,
        flow_digest,
        state_digest,
    )


async def provider_of_flow(conn: Connection, flow_digest: str) -> str | None:
    """Returns the provider's name of a flow, whatever its state; None if there is no such flow."""
    name = await conn.fetchval("SELECT provider FROM oauth_flows WHERE flow = $1", flow_digest)
    return str(name) if name is not None else None


async def claim_flow(
    conn: Connection,
    *,
    flow_digest: str,
    state_digest: str,
    purpose: Purpose,
    user_id: UUID | None,
    now: datetime,
) -> Flow | None:
    """Claims an open flow for whoever started it; None if it is not there, over or claimed."""
    row = await conn.fetchrow(
        "UPDATE oauth_flows SET claimed_at = $5 WHERE flow = $1 AND state = $2 AND purpose = $3"
        " AND user_id IS NOT DISTINCT FROM $4 AND claimed_at IS NULL AND expires_at > $5"
        f" RETURNING {_FLOW}",
        flow_digest,
        state_digest,
        purpose,
        user_id,
        now,
    )
    return _flow(row) if row else None


async def owner_of_identity(conn: Connection, proof: Proof) -> UUID | None:
    """Returns whose an identity is, None if it is linked to nobody."""
    user_id: UUID | None = await conn.fetchval(
        "SELECT user_id FROM oauth_identities WHERE provider = $1 AND subject = $2",
        proof.provider,
        proof.subject,
    )
    return user_id


async def use_identity(conn: Connection, user_id: UUID, proof: Proof, now: datetime) -> bool:
    """Stamps the use of a user's identity; False if it is not the user's, or no more."""
    return bool(
        await conn.fetchval(
            "UPDATE oauth_identities SET last_used_at = $4"
            " WHERE provider = $1 AND subject = $2 AND user_id = $3 RETURNING true",
            proof.provider,
            proof.subject,
            user_id,
            now,
        )
    )


async def insert_identity(
    conn: Connection, identity_id: UUID, user_id: UUID, proof: Proof, now: datetime
) -> Identity:
    """
    Links an identity, or stamps the use of one that the same user has already.

    IdentityAlreadyLinked if it is another user's.
    """
    row = await conn.fetchrow(
        f"INSERT INTO oauth_identities ({_IDENTITY}) VALUES ($1, $2, $3, $4, $5, $6, $6)"
        " ON CONFLICT (provider, subject) DO UPDATE SET last_used_at = $6"
        f" WHERE oauth_identities.user_id = $2 RETURNING {_IDENTITY}",
        identity_id,
        user_id,
        proof.provider,
        proof.subject,
        proof.shown_email,
        now,
    )
    if row is None:
        raise IdentityAlreadyLinked
    return _identity(row)


async def name_first_identity(conn: Connection, user_id: UUID) -> None:
    """Makes users.oauth_provider and oauth_id name the oldest identity, or nothing without one."""
    await conn.execute(
        "UPDATE users SET (oauth_provider, oauth_id) = (SELECT provider, subject"
        " FROM oauth_identities WHERE user_id = $1 ORDER BY id LIMIT 1) WHERE id = $1",
        user_id,
    )


async def list_identities(
    conn: Connection, user_id: UUID, *, before: UUID | None, limit: int
) -> list[Identity]:
    """Returns a user's identities, newest first, from just before the id `before`."""
    rows = await conn.fetch(
        f"SELECT {_IDENTITY} FROM oauth_identities"
        " WHERE user_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
        user_id,
        before,
        limit,
    )
    return [_identity(row) for row in rows]


async def delete_identity(conn: Connection, user_id: UUID, identity_id: UUID) -> bool:
    """Takes an identity off a user; False if the user has none of this id."""
    return bool(
        await conn.fetchval(
            "DELETE FROM oauth_identities WHERE id = $2 AND user_id = $1 RETURNING true",
            user_id,
            identity_id,
        )
    )


async def can_sign_in(conn: Connection, user_id: UUID) -> bool:
    """Tells whether a user has a way to sign in beside mails: password, identity or passkey."""
    return bool(
        await conn.fetchval(
            "SELECT password_hash IS NOT NULL"
            " OR EXISTS (SELECT FROM oauth_identities i WHERE i.user_id = u.id)"
            " OR EXISTS (SELECT FROM passkeys p WHERE p.user_id = u.id)"
            " FROM users u WHERE id = $1",
            user_id,
        )
    )


def _flow(row: Record) -> Flow:
    return Flow(
        id=row["id"],
        provider=row["provider"],
        purpose=Purpose(row["purpose"]),
        user_id=row["user_id"],
        redirect_uri=row["redirect_uri"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )


def _identity(row: Record) -> Identity:
    return Identity(
        id=row["id"],
        user_id=row["user_id"],
        provider=row["provider"],
        subject=row["subject"],
        email=row["email"],
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
    )
