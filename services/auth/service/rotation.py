"""Rotation of the keys that sign access tokens: published first, signing later."""

from dataclasses import dataclass
from datetime import datetime

from chassis import idempotency
from chassis.callers import Caller
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.postgres import Connection
from chassis.revocations import Revocations
from services.auth.domain.admin_logs import Action
from services.auth.domain.signing_keys import last_needed
from services.auth.service.administrators import lock_admins
from services.auth.service.room import KEYS, Room
from services.auth.store import admin_logs, signing_keys
from services.auth.store.signing_keys import StoredKey


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation came to."""

    kid: str
    activates_at: datetime
    created: bool
    """False if another one was under way, whose key this is."""


class KeyService:
    """Rotation of the signing keys."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def rotate(
        self, *, reason: str, caller: Caller, key: Key | None, withdraw: bool = False
    ) -> Rotation:
        """
        Makes the next key unless one waits to sign already, and logs it.

        With `withdraw` it signs now, and every key before it ends now with the tokens it
        signed. AccessDenied for a user who is no administrator any more, StepUpRequired
        for one without a fresh proof of who is there.
        """
        room = self._room
        now = room.clock.now()
        activates = now if withdraw else now + room.policy.key_delay
        made = room.signer.make()
        async with room.database.transaction() as conn:

            async def effect() -> Rotation:
                await lock_admins(conn, caller, now)
                await signing_keys.lock_signing_keys(conn, alone=withdraw)
                details = {"kid": made.plan.kid, "reason": reason}
                if withdraw:
                    ended = await signing_keys.withdraw_signing_keys(conn, now)
                    details["withdrawn"] = " ".join(ended)
                free = withdraw or await signing_keys.retire_signing_key(
                    conn,
                    retired_at=activates,
                    expires_at=last_needed(activates, room.policy.access_token),
                    now=now,
                )
                # Else somebody else's rotation was first, whose key is answered.
                created = free and await self._insert(conn, made, activates, now)
                if created:
                    await admin_logs.insert_admin_log(
                        conn,
                        log_id=uuid7(now),
                        actor=caller.key,
                        action=Action.ROTATE_SIGNING_KEYS,
                        target=None,
                        details=details,
                        now=now,
                    )
                newest = await signing_keys.newest_plan(conn)
                return Rotation(newest.kid, newest.activates_at, created)

            rotation = await idempotency.once(conn, KEYS, key, Rotation, effect, now=now)
        await room.signer.load()
        # Carries no revocation: it wakes the other replicas.
        await room.announce(Revocations([], []))
        return rotation

    async def _insert(
        self, conn: Connection, made: StoredKey, activates: datetime, now: datetime
    ) -> bool:
        return await signing_keys.insert_signing_key(
            conn,
            kid=made.plan.kid,
            public_key=made.public_key,
            sealed=made.sealed,
            now=now,
            activates_at=activates,
        )
