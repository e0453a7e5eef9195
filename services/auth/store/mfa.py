"""Authenticator apps, recovery codes and challenges."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from chassis.postgres import Connection
from services.auth.domain.mfa import CHALLENGE_TRIES, Factor, FactorKind, Purpose


async def enrol_totp(
    conn: Connection, user_id: UUID, *, factor_id: UUID, sealed: bytes, now: datetime
) -> bool:
    """Stores a secret that waits to be confirmed; False if the account has a confirmed one."""
    return bool(
        await conn.fetchval(
            "INSERT INTO mfa_totp (user_id, id, sealed_secret, created_at) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (user_id) DO UPDATE SET id = excluded.id,"
            " sealed_secret = excluded.sealed_secret, created_at = excluded.created_at"
            " WHERE mfa_totp.confirmed_at IS NULL RETURNING true",
            user_id,
            factor_id,
            sealed,
            now,
        )
    )


async def get_pending_totp(conn: Connection, user_id: UUID, since: datetime) -> bytes | None:
    """Returns the sealed secret that waits since then at most."""
    sealed: bytes | None = await conn.fetchval(
        "SELECT sealed_secret FROM mfa_totp"
        " WHERE user_id = $1 AND confirmed_at IS NULL AND created_at > $2",
        user_id,
        since,
    )
    return sealed


async def confirm_totp(conn: Connection, user_id: UUID, *, step: int, now: datetime) -> bool:
    return bool(
        await conn.fetchval(
            "UPDATE mfa_totp SET confirmed_at = $3, last_step = $2"
            " WHERE user_id = $1 AND confirmed_at IS NULL RETURNING true",
            user_id,
            step,
            now,
        )
    )


async def get_totp(conn: Connection, user_id: UUID) -> bytes | None:
    """Returns the sealed secret of a confirmed app."""
    sealed: bytes | None = await conn.fetchval(
        "SELECT sealed_secret FROM mfa_totp WHERE user_id = $1 AND confirmed_at IS NOT NULL",
        user_id,
    )
    return sealed


async def take_totp_step(conn: Connection, user_id: UUID, *, step: int, now: datetime) -> bool:
    """Takes the code of a time step; False if that one or a later one was taken."""
    return bool(
        await conn.fetchval(
            "UPDATE mfa_totp SET last_step = $2, last_used_at = $3"
            " WHERE user_id = $1 AND confirmed_at IS NOT NULL AND last_step < $2 RETURNING true",
            user_id,
            step,
            now,
        )
    )


async def delete_totp(conn: Connection, user_id: UUID) -> bool:
    """Deletes the app, confirmed or not; tells whether it was confirmed."""
    return bool(
        await conn.fetchval(
            "DELETE FROM mfa_totp WHERE user_id = $1 RETURNING confirmed_at IS NOT NULL", user_id
        )
    )


async def replace_recovery_codes(
    conn: Connection, user_id: UUID, codes: Sequence[tuple[UUID, bytes]], now: datetime
) -> None:
    """Deletes a user's codes and stores the ids and digests of others; the user is locked."""
    await conn.execute("DELETE FROM mfa_recovery_codes WHERE user_id = $1", user_id)
    await conn.execute(
        "INSERT INTO mfa_recovery_codes (id, user_id, digest, created_at)"
        " SELECT id, $1, digest, $4 FROM unnest($2::uuid[], $3::bytea[]) AS code (id, digest)",
        user_id,
        [row_id for row_id, _ in codes],
        [digest for _, digest in codes],
        now,
    )


async def take_recovery_code(
    conn: Connection, user_id: UUID, *, digest: bytes, now: datetime
) -> bool:
    """Uses a code up; False if there is none of this digest that is unused."""
    return bool(
        await conn.fetchval(
            "UPDATE mfa_recovery_codes SET used_at = $3"
            " WHERE user_id = $1 AND digest = $2 AND used_at IS NULL RETURNING true",
            user_id,
            digest,
            now,
        )
    )


async def count_recovery_codes(conn: Connection, user_id: UUID) -> int:
    """Returns how many codes are unused."""
    return int(
        await conn.fetchval(
            "SELECT count(*) FROM mfa_recovery_codes WHERE user_id = $1 AND used_at IS NULL",
            user_id,
        )
    )


async def list_methods(conn: Connection, user_id: UUID) -> Sequence[str]:
    """Returns what a user can complete a sign-in with."""
    row = await conn.fetchrow(
        "SELECT EXISTS (SELECT FROM mfa_totp WHERE user_id = $1 AND confirmed_at IS NOT NULL)"
        " AS totp, EXISTS (SELECT FROM mfa_recovery_codes WHERE user_id = $1 AND used_at IS NULL)"
        " AS recovery_code, EXISTS (SELECT FROM passkeys WHERE user_id = $1) AS passkey",
        user_id,
    )
    return [method for method, there in row.items() if there]


async def list_factors(
    conn: Connection, user_id: UUID, *, after: UUID | None, limit: int
) -> list[Factor]:
    """Returns confirmed factors, oldest first, from just after the id `after`."""
    rows = await conn.fetch(
        "SELECT id, kind, name, created_at, last_used_at FROM ("
        " SELECT id, 'totp' AS kind, '' AS name, created_at, last_used_at FROM mfa_totp"
        " WHERE user_id = $1 AND confirmed_at IS NOT NULL UNION ALL"
        " SELECT id, 'passkey', name, created_at, last_used_at FROM passkeys WHERE user_id = $1"
        ") AS factor WHERE $2::uuid IS NULL OR id > $2 ORDER BY id LIMIT $3",
        user_id,
        after,
        limit,
    )
    return [
        Factor(
            row["id"], FactorKind(row["kind"]), row["name"], row["created_at"], row["last_used_at"]
        )
        for row in rows
    ]


async def has_factor(conn: Connection, user_id: UUID) -> bool:
    return bool(
        await conn.fetchval(
            "SELECT EXISTS (SELECT FROM mfa_totp WHERE user_id = $1 AND confirmed_at IS NOT NULL)"
            " OR EXISTS (SELECT FROM passkeys WHERE user_id = $1)",
            user_id,
        )
    )


async def delete_factors(conn: Connection, user_id: UUID) -> None:
    """Deletes whatever the account could prove itself with beside its password."""
    # Challenges stay until they are over: a used one must not come back.
    for table in ("mfa_totp", "mfa_recovery_codes", "passkeys"):
        await conn.execute(f"DELETE FROM {table} WHERE user_id = $1", user_id)


async def insert_challenge(
    conn: Connection,
    challenge_id: UUID,
    purpose: Purpose,
    *,
    user_id: UUID | None,
    expires_at: datetime,
) -> None:
    await conn.execute(
        "INSERT INTO mfa_challenges (id, purpose, user_id, expires_at) VALUES ($1, $2, $3, $4)",
        challenge_id,
        purpose,
        user_id,
        expires_at,
    )


async def take_challenge(
    conn: Connection, challenge_id: UUID, purpose: Purpose, *, user_id: UUID | None, now: datetime
) -> bool:
    """Uses a challenge up; False if it is over, was used or is another's."""
    return bool(
        await conn.fetchval(
            "UPDATE mfa_challenges SET used_at = $4 WHERE id = $1 AND purpose = $2"
            " AND user_id IS NOT DISTINCT FROM $3 AND used_at IS NULL AND expires_at > $4"
            " RETURNING true",
            challenge_id,
            purpose,
            user_id,
            now,
        )
    )


async def count_try(
    conn: Connection, challenge_id: UUID, *, user_id: UUID, expires_at: datetime
) -> bool:
    """Counts a try of a held-back sign-in; False if it was opened or had all its tries."""
    return bool(
        await conn.fetchval(
            "INSERT INTO mfa_challenges (id, purpose, user_id, tries, expires_at)"
            " VALUES ($1, 'sign_in', $2, 1, $3)"
            " ON CONFLICT (id) DO UPDATE SET tries = mfa_challenges.tries + 1"
            " WHERE mfa_challenges.used_at IS NULL AND mfa_challenges.tries < $4 RETURNING true",
            challenge_id,
            user_id,
            expires_at,
            CHALLENGE_TRIES,
        )
    )


async def delete_unconfirmed(conn: Connection, before: datetime, limit: int) -> int:
    """Deletes up to `limit` apps enrolled before and never confirmed; returns how many."""
    deleted = await conn.fetchval(
        "WITH gone AS (DELETE FROM mfa_totp WHERE ctid = ANY(ARRAY("
        "SELECT ctid FROM mfa_totp WHERE confirmed_at IS NULL AND created_at < $1"
        " ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING 1)"
        " SELECT count(*) FROM gone",
        before,
        limit,
    )
    return int(deleted)
