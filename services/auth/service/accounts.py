"""Accounts: registering, reading, changing what a user may do."""

from collections.abc import Sequence
from uuid import UUID

from chassis import idempotency, outbox
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.revocations import Revocations
from services.auth.domain.users import Role, User, normalise_email
from services.auth.errors import LastAdmin, UserNotFound
from services.auth.service.emails import send_verification
from services.auth.service.room import KEYS, ROOM, Room
from services.auth.store import admin_logs, users

USER_REGISTERED = "user_registered"
USAGE = "usage"


class AccountService:
    """Accounts and their roles."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def register(self, *, email: str, password: str, key: Key | None) -> User:
        """Creates, announces and mails an account; EmailAlreadyTaken if the address has one."""
        room = self._room
        hashed = await room.passwords.hash(password)
        now = room.clock.now()
        async with room.database.transaction() as conn:

            async def effect() -> User:
                user = await users.insert_user(
                    conn,
                    user_id=uuid7(now),
                    email=normalise_email(email),
                    password_hash=hashed,
                    now=now,
                )
                payload = {"user_id": str(user.id)}
                await outbox.enqueue(conn, ROOM, USER_REGISTERED, payload, [USAGE], now=now)
                await send_verification(conn, room, user, now)
                return user

            user = await idempotency.once(conn, KEYS, key, User, effect, now=now)
        room.wake_relay()
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
        self, *, user_id: UUID, role: Role, reason: str, actor: str, key: Key | None
    ) -> User:
        """Changes a role, ends older access tokens and logs it; LastAdmin guards the last one."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:

            async def effect() -> User:
                admins = await users.lock_admins(conn)
                user = await users.lock_user(conn, user_id)
                if user is None:
                    raise UserNotFound
                if user.role is role:
                    return user
                if admins == [user_id]:
                    raise LastAdmin
                changed = await users.set_role(conn, user_id, role, now)
                await admin_logs.insert_admin_log(
                    conn,
                    log_id=uuid7(now),
                    actor=actor,
                    action="set_role",
                    target=user_id,
                    details={"from": user.role, "to": role, "reason": reason},
                    now=now,
                )
                return changed

            user = await idempotency.once(conn, KEYS, key, User, effect, now=now)
        await self._room.announce(Revocations([], [(user.id, user.token_version)]))
        return user
