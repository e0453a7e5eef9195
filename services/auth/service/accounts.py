"""Accounts: registering, reading, changing what a user may do."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from chassis import idempotency, outbox
from chassis.callers import Caller, Kind
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.limits import Try
from chassis.postgres import Connection
from chassis.revocations import Revocations
from services.auth.domain.admin import UserState, service_may_change
from services.auth.domain.admin_logs import Action
from services.auth.domain.sessions import EndReason
from services.auth.domain.users import Role, User, normalise_email
from services.auth.errors import LastAdmin, RoleNotGrantable, UserNotActive, UserNotFound
from services.auth.service.administrators import lock_admins
from services.auth.service.attempts import network
from services.auth.service.emails import send_verification
from services.auth.service.passwords import require_acceptable
from services.auth.service.room import KEYS, ROOM, Room
from services.auth.store import admin_logs, sessions, users

USER_REGISTERED = "user_registered"
ROLE_CHANGED = "role_changed"
USAGE = "usage"


class AccountService:
    """Accounts and their roles."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def register(
        self,
        *,
        email: str,
        password: str,
        key: Key | None,
        invite_token: str = "",
        address: str | None = None,
    ) -> User:
        """
        Creates, announces and mails an account; EmailAlreadyTaken if the address has one.

        PasswordTooWeak comes before the address is looked for: it says nothing about who is here.
        Whoever binds invitations finds the token in the announcement; no token is refused here.
        TooManyAttempts if one address tries ever more registrations, whatever they were answered:
        each costs a hash and tells who has an account, by its answer alone and not by its time.
        """
        room = self._room
        require_acceptable(password, normalise_email(email))
        attempt = Try(room.registrations, room.pseudonym(network(address)))
        await room.limits.check(attempt)
        await room.limits.failed(attempt)
        hashed = await room.passwords.hash(password)
        now = room.clock.now()
        async with room.evenly(), room.database.transaction() as conn:

            async def effect() -> User:
                user = await self.create(
                    conn,
                    email=email,
                    password_hash=hashed,
                    invite_token=invite_token,
                    now=now,
                )
                await send_verification(conn, room, user, now)
                return user

            user = await idempotency.once(conn, KEYS, key, User, effect, now=now)
        room.wake_relay()
        return user

    async def create(
        self,
        conn: Connection,
        *,
        email: str,
        password_hash: str | None,
        now: datetime,
        invite_token: str = "",
    ) -> User:
        """
        Inserts an account and announces it; every way to register ends here.

        EmailAlreadyTaken if the address has one. The caller wakes the relay after the commit.
        """
        user = await users.insert_user(
            conn,
            user_id=uuid7(now),
            email=normalise_email(email),
            password_hash=password_hash,
            now=now,
        )
        payload = {"user_id": str(user.id)}
        if invite_token:
            payload["invite_token"] = invite_token
        await outbox.enqueue(conn, ROOM, USER_REGISTERED, payload, [USAGE], now=now)
        return user

    async def get_user(self, user_id: UUID) -> User:
        async with self._room.database.connection() as conn:
            user = await users.get_user(conn, user_id)
        if user is None:
            raise UserNotFound
        return user

    async def list_users(
        self, *, role: Role | None, before: UUID | None, limit: int
    ) -> tuple[Sequence[User], UUID | None]:
        """Returns a page, newest first, and the id after which the next one starts."""
        async with self._room.database.connection() as conn:
            found = await users.list_users(conn, role=role, before=before, limit=limit + 1)
        more = len(found) > limit
        return found[:limit], found[limit - 1].id if more else None

    async def set_role(
        self, *, user_id: UUID, role: Role, reason: str, actor: Caller, key: Key | None
    ) -> User:
        """
        Changes a role, ends older access tokens and logs it; LastAdmin guards the last one.

        Who is no administrator any more acts as nobody, and nobody acts as a new one.
        StepUpRequired for an administrator without a fresh proof of who is there,
        RoleNotGrantable for a service that is about administrators, UserNotActive if erased.
        """
        now = self._room.clock.now()
        ended: Sequence[UUID] = []
        async with self._room.database.transaction() as conn:

            async def effect() -> User:
                nonlocal ended
                if actor.kind is Kind.SERVICE and role is Role.ADMIN:
                    await users.lock_first_admin(conn)
                admins = await lock_admins(conn, actor, now)
                user = await users.lock_user(conn, user_id)
                if user is None:
                    raise UserNotFound
                if user.erased_at is not None:
                    raise UserNotActive(metadata={"state": UserState.ERASED})
                if user.role is role:
                    return user
                if actor.kind is Kind.SERVICE and not service_may_change(
                    user.role, role, administered=bool(admins)
                ):
                    raise RoleNotGrantable
                if admins == [user_id]:
                    raise LastAdmin
                changed = await users.set_role(conn, user_id, role, now)
                if Role.ADMIN in (user.role, role):
                    ended = await sessions.end_impersonations(
                        conn, user_id, reason=EndReason.ADMIN, by=actor.key, now=now
                    )
                await outbox.enqueue(
                    conn, ROOM, ROLE_CHANGED, role_change(changed), [USAGE], now=now
                )
                await admin_logs.insert_admin_log(
                    conn,
                    log_id=uuid7(now),
                    actor=actor.key,
                    action=Action.SET_ROLE,
                    target=user_id,
                    details={"from": user.role, "to": role, "reason": reason},
                    now=now,
                )
                return changed

            user = await idempotency.once(conn, KEYS, key, User, effect, now=now)
        self._room.wake_relay()
        await self._room.announce(Revocations(ended, [(user.id, user.token_version)]))
        return user


def role_change(user: User) -> dict[str, str]:
    """Returns the payload of role_changed; its sequence rises with every change of the role."""
    return {
        "user_id": str(user.id),
        "role": user.role,
        # Raised in the statement that changes the role, and never lowered.
        "sequence": str(user.token_version),
    }
