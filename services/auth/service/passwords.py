"""Passwords: what may be one, changing it."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from chassis import idempotency
from chassis.callers import Caller
from chassis.errors import FieldViolation
from chassis.idempotency import Key
from chassis.postgres import Connection
from chassis.refusals import Conflict
from chassis.revocations import Revocations
from services.auth.domain.passwords import Estimate, Weakness, check_password
from services.auth.domain.sessions import EndReason
from services.auth.domain.users import User
from services.auth.errors import (
    CurrentPasswordWrong,
    PasswordNotSet,
    PasswordTooWeak,
    UserNotFound,
)
from services.auth.scoring import COMMON_PASSWORDS
from services.auth.service.attempts import Attempts, count_call
from services.auth.service.mail import Mail, enqueue
from services.auth.service.room import KEYS, Room
from services.auth.service.step_up import require_fresh
from services.auth.store import emails, sessions, users


def weakness_of(password: str, email: str) -> Weakness | None:
    """Returns which rule a password breaks; `email` may be empty."""
    return check_password(password, email=email, common=COMMON_PASSWORDS)


def require_acceptable(password: str, email: str, *, name: str = "password") -> None:
    """PasswordTooWeak if it breaks a rule; `name` is the field of the request that holds it."""
    weakness = weakness_of(password, email)
    if weakness is not None:
        broken = FieldViolation(name, f"password.{weakness}", PasswordTooWeak.__doc__ or "")
        raise PasswordTooWeak(metadata={"why": weakness}, violations=(broken,))


class PasswordService:
    """Passwords of people who have an account, or are about to."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._attempts = Attempts(room)

    async def strength(
        self, password: str, email: str, address: str | None = None
    ) -> tuple[Estimate, Weakness | None]:
        """
        Returns how well a password resists guessing, and which rule it breaks.

        TooManyAttempts past any person's number: each costs a calculation.
        """
        await count_call(self._room, "strength", address)
        return await self._room.strength.estimate(password, email), weakness_of(password, email)

    async def change(
        self,
        *,
        caller: Caller,
        current: str,
        new: str,
        address: str | None,
        key: Key | None,
    ) -> int:
        """
        Changes a password and ends every session but the caller's; returns how many.

        Every access token ends, the caller's too: its session gives it another one.
        CurrentPasswordWrong is counted against the account as a failed login is.
        """
        room = self._room
        async with room.database.connection() as conn:
            found = await users.find_password(conn, caller.user_id) if caller.user_id else None
        if found is None:
            raise UserNotFound
        user, hashed = found
        if hashed is None:
            raise PasswordNotSet
        if user.mfa_enabled_at is not None:
            # The old password alone is one factor of two.
            require_fresh(caller, user, room.clock.now())
        require_acceptable(new, user.email, name="new_password")
        await self._attempts.check(user.email, address)
        fits = await room.passwords.verify(current, hashed)
        new_hash = None
        if fits:
            await self._attempts.succeeded(user.email, address)
            new_hash = await room.passwords.hash(new)
        change = _Change(caller, user, hashed, new_hash, room.clock.now())
        try:
            async with room.database.transaction() as conn:
                # A repeated call finds its answer although the current password fits no more.
                ended = await idempotency.once(
                    conn, KEYS, key, int, partial(change.apply, conn), now=change.now
                )
        except CurrentPasswordWrong:
            await self._attempts.failed(user.email, address)
            raise
        await room.announce(change.revoked)
        room.wake_relay()
        return ended


@dataclass(slots=True)
class _Change:
    """One change of a password, from the proof of the current one on."""

    caller: Caller
    user: User
    verified: str
    """The hash that the current password was compared with."""
    new_hash: str | None
    """None if it did not fit."""
    now: datetime
    revoked: Revocations = field(default_factory=lambda: Revocations([], []))

    async def apply(self, conn: Connection) -> int:
        """Writes all of it; returns how many other sessions it ended."""
        if self.new_hash is None:
            raise CurrentPasswordWrong
        # Another one may have been set since this one was verified.
        if not await users.confirm_password(
            conn, self.user.id, verified=self.verified, new_hash=self.new_hash
        ):
            raise Conflict
        ended = await sessions.end_sessions(
            conn,
            self.user.id,
            reason=EndReason.PASSWORD_CHANGED,
            by=self.caller.key,
            now=self.now,
            spare=self.caller.session_id,
        )
        version = await users.revoke_tokens(conn, self.user.id, self.now)
        # What was mailed while the old password was good may have been asked for by its thief.
        await emails.supersede(conn, self.user.id, self.now)
        values = {"at": self.now.isoformat()}
        notice = Mail("password_changed", self.user.email, values, about=self.user.id)
        await enqueue(conn, notice, self.now)
        self.revoked = Revocations(ended, [(self.user.id, version)])
        return len(ended)
