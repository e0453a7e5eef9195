"""Second factors: authenticator app, recovery codes, and what a first or last factor does."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import pyotp
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from chassis import idempotency
from chassis.callers import Caller
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.postgres import Connection
from chassis.revocations import Revocations
from services.auth.domain.admin_logs import Action
from services.auth.domain.emails import Change
from services.auth.domain.mfa import (
    ENROLMENT_LIFE,
    RECOVERY_CODES,
    TOTP_SECRET_BYTES,
    Factor,
    recovery_code,
    recovery_digest,
    totp_steps,
)
from services.auth.domain.sessions import Acr, EndReason
from services.auth.domain.users import User
from services.auth.errors import (
    MfaCodeInvalid,
    MfaNotEnrolled,
    SessionEnded,
    TotpAlreadyEnrolled,
    UserNotFound,
)
from services.auth.service.administrators import lock_admins
from services.auth.service.mail import Mail, enqueue, tell_of_change
from services.auth.service.room import KEYS, Room
from services.auth.service.step_up import require_fresh, require_verified
from services.auth.store import admin_logs, emails, mfa, sessions, users

_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Enrolment:
    """An authenticator app that waits for its first code."""

    secret: str
    """Base32."""
    uri: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Added:
    """What a confirmed factor brought with it; nothing if it was not the first one."""

    codes: list[UUID]
    """Rows of the recovery codes."""
    ended: Sequence[UUID]
    """Sessions to announce as revoked after the commit."""


class MfaService:
    """Second factors; what concerns passkeys alone is PasskeyService."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._totp_key = room.derive("totp-secrets")
        self._recovery_key = room.derive("recovery-codes")

    async def enrol_totp(self, caller: Caller) -> Enrolment:
        """
        Makes a secret that waits to be confirmed; TotpAlreadyEnrolled if there is one.

        EmailNotVerified while the account's address is not.
        """
        now = self._room.clock.now()
        secret = os.urandom(TOTP_SECRET_BYTES)
        async with self._room.database.transaction() as conn:
            user = await own(conn, caller)
            require_fresh(caller, user, now)
            require_verified(user)
            sealed = self._seal(user.id, secret)
            if not await mfa.enrol_totp(
                conn, user.id, factor_id=uuid7(now), sealed=sealed, now=now
            ):
                raise TotpAlreadyEnrolled
        totp = _totp(secret)
        uri = totp.provisioning_uri(name=user.email, issuer_name=self._room.relying_party.name)
        return Enrolment(totp.secret, uri, now + ENROLMENT_LIFE)

    async def confirm_totp(self, caller: Caller, code: str, key: Key | None) -> Sequence[str]:
        """
        Makes the enrolled app a factor; returns recovery codes if it is the first one.

        MfaNotEnrolled if none waits, MfaCodeInvalid if the code is not its.
        """
        now = self._room.clock.now()
        ended: list[UUID] = []
        async with self._room.database.transaction() as conn:
            user = await own(conn, caller)
            # A repeated call finds the factor on that it has itself switched on.
            require_fresh(replace(caller, acr=Acr.AAL2), user, now)

            async def effect() -> list[UUID]:
                require_fresh(caller, user, now)
                require_verified(user)
                sealed = await mfa.get_pending_totp(conn, user.id, now - ENROLMENT_LIFE)
                if sealed is None:
                    raise MfaNotEnrolled
                step = matching_step(self._unseal(user.id, sealed), code, now)
                if step is None or not await mfa.confirm_totp(conn, user.id, step=step, now=now):
                    raise MfaCodeInvalid
                added = await self.added(conn, caller, user, "otp", now)
                ended.extend(added.ended)
                return added.codes

            codes = await idempotency.once(conn, KEYS, key, list[UUID], effect, now=now)
        self._room.wake_relay()
        if ended:
            await self._room.announce(Revocations(ended, []))
        return self.spell(codes)

    async def disable_totp(self, caller: Caller) -> None:
        """Removes the app; removing it again changes nothing."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            user = await own(conn, caller)
            require_fresh(caller, user, now)
            if await mfa.delete_totp(conn, user.id):
                await self.removed(conn, user, Change.APP_REMOVED, now)
        self._room.wake_relay()

    async def regenerate_recovery_codes(self, caller: Caller, key: Key | None) -> Sequence[str]:
        """Replaces every code; MfaNotEnrolled for an account without a factor."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            user = await own(conn, caller)
            require_fresh(caller, user, now)

            async def effect() -> list[UUID]:
                if not await mfa.has_factor(conn, user.id):
                    raise MfaNotEnrolled
                await tell_of_change(conn, user, Change.CODES_REPLACED, now)
                return await self._replace_codes(conn, user, now)

            codes = await idempotency.once(conn, KEYS, key, list[UUID], effect, now=now)
        self._room.wake_relay()
        return self.spell(codes)

    async def list_factors(
        self, user_id: UUID, *, after: UUID | None, limit: int
    ) -> tuple[Sequence[Factor], UUID | None, int]:
        """Returns a page, the id after which the next one starts, and the recovery codes left."""
        async with self._room.database.connection() as conn:
            if await users.get_user(conn, user_id) is None:
                raise UserNotFound
            found = await mfa.list_factors(conn, user_id, after=after, limit=limit + 1)
            left = await mfa.count_recovery_codes(conn, user_id)
        more = len(found) > limit
        return found[:limit], found[limit - 1].id if more else None, left

    async def reset(self, caller: Caller, *, user_id: UUID, reason: str, key: Key | None) -> User:
        """Removes every factor of a user and ends all sessions and tokens; logs who and why."""
        now = self._room.clock.now()
        revoked: list[Revocations] = []
        async with self._room.database.transaction() as conn:

            async def effect() -> User:
                await lock_admins(conn, caller, now)
                user = await users.lock_user(conn, user_id)
                if user is None:
                    raise UserNotFound
                await mfa.delete_factors(conn, user_id)
                await self._switch_off(conn, user, now)
                ended = await sessions.end_sessions(
                    conn, user_id, reason=EndReason.MFA_CHANGED, by=caller.key, now=now
                )
                version = await users.revoke_tokens(conn, user_id, now)
                await admin_logs.insert_admin_log(
                    conn,
                    log_id=uuid7(now),
                    actor=caller.key,
                    action=Action.RESET_MFA,
                    target=user_id,
                    details={"reason": reason},
                    now=now,
                )
                revoked.append(Revocations(ended, [(user_id, version)]))
                return replace(user, mfa_enabled_at=None, token_version=version)

            user = await idempotency.once(conn, KEYS, key, User, effect, now=now)
        self._room.wake_relay()
        for one in revoked:
            await self._room.announce(one)
        return user

    async def added(
        self, conn: Connection, caller: Caller, user: User, amr: str, now: datetime
    ) -> Added:
        """
        Counts a factor that was just confirmed; the user is locked.

        The session that confirmed it has used it. With the first factor every other
        session ends: what one factor opened must not be there beside an account of two.
        """
        session = caller.session_id and await sessions.step_up_session(
            conn, caller.session_id, user_id=user.id, amr=(amr,), acr=Acr.AAL2, now=now
        )
        if not session:
            raise SessionEnded(metadata={"end_reason": ""})
        if user.mfa_enabled_at is not None:
            change = Change.APP_ADDED if amr == "otp" else Change.PASSKEY_ADDED
            await tell_of_change(conn, user, change, now)
            return Added([], [])
        await users.set_mfa_enabled(conn, user.id, now)
        ended = await sessions.end_sessions(
            conn,
            user.id,
            reason=EndReason.MFA_CHANGED,
            by=caller.key,
            now=now,
            spare=caller.session_id,
        )
        # Whoever was put out may have asked for a mail before.
        await emails.supersede(conn, user.id, now)
        await enqueue(conn, Mail("mfa_enabled", user.email, about=user.id), now)
        return Added(await self._replace_codes(conn, user, now), ended)

    async def removed(self, conn: Connection, user: User, change: Change, now: datetime) -> None:
        """Tells of a factor just removed; if it was the last one the second step is off."""
        if await mfa.has_factor(conn, user.id):
            await tell_of_change(conn, user, change, now)
        else:
            await mfa.delete_factors(conn, user.id)
            await self._switch_off(conn, user, now)

    async def take_totp(self, conn: Connection, user_id: UUID, code: str, now: datetime) -> bool:
        """Takes a code of a confirmed app; a code works once."""
        sealed = await mfa.get_totp(conn, user_id)
        if sealed is None:
            return False
        step = matching_step(self._unseal(user_id, sealed), code, now)
        return step is not None and await mfa.take_totp_step(conn, user_id, step=step, now=now)

    async def take_recovery_code(
        self, conn: Connection, user_id: UUID, code: str, now: datetime
    ) -> bool:
        """Takes a recovery code; a code works once."""
        digest = recovery_digest(self._recovery_key, user_id, code)
        return await mfa.take_recovery_code(conn, user_id, digest=digest, now=now)

    def spell(self, codes: Sequence[UUID]) -> Sequence[str]:
        """Returns the recovery codes of rows; they rest nowhere."""
        return [recovery_code(self._recovery_key, row_id) for row_id in codes]

    async def _replace_codes(self, conn: Connection, user: User, now: datetime) -> list[UUID]:
        rows = [uuid7(now) for _ in range(RECOVERY_CODES)]
        digests = [recovery_digest(self._recovery_key, user.id, code) for code in self.spell(rows)]
        await mfa.replace_recovery_codes(conn, user.id, list(zip(rows, digests, strict=True)), now)
        return rows

    async def _switch_off(self, conn: Connection, user: User, now: datetime) -> None:
        if user.mfa_enabled_at is not None:
            await users.set_mfa_enabled(conn, user.id, None)
            await enqueue(conn, Mail("mfa_disabled", user.email, about=user.id), now)

    def _seal(self, user_id: UUID, secret: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self._totp_key).encrypt(nonce, secret, user_id.bytes)

    def _unseal(self, user_id: UUID, sealed: bytes) -> bytes:
        nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        return AESGCM(self._totp_key).decrypt(nonce, text, user_id.bytes)


async def own(conn: Connection, caller: Caller) -> User:
    """Locks the caller's account, before any other row of it."""
    user = await users.lock_user(conn, caller.user_id) if caller.user_id else None
    if user is None or user.erased_at is not None:
        raise UserNotFound
    return user


def matching_step(secret: bytes, code: str, now: datetime) -> int | None:
    """Returns the time step near now whose code this is (RFC 6238), or None."""
    totp = _totp(secret)
    for step in totp_steps(now):
        if pyotp.utils.strings_equal(totp.generate_otp(step), code):
            return step
    return None


def _totp(secret: bytes) -> pyotp.TOTP:
    return pyotp.TOTP(base64.b32encode(secret).decode())
