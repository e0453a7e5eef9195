"""Administration: finding accounts, keeping them out, acting as one, and the log of all that."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID, uuid4

from chassis import idempotency
from chassis.callers import Caller, Kind
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.postgres import Connection
from chassis.refusals import AccessDenied
from chassis.revocations import Revocations
from services.auth.domain.admin import (
    IMPERSONATED,
    IMPERSONATION,
    LogFilter,
    UserFilter,
    UserState,
    state_of,
)
from services.auth.domain.admin_logs import Action, AdminLog
from services.auth.domain.sessions import EndReason, Session, digest
from services.auth.domain.users import Role, User
from services.auth.errors import (
    AdminNotImpersonable,
    BanExpiryPassed,
    RoleNotGrantable,
    SelfBan,
    UserNotActive,
    UserNotFound,
)
from services.auth.service.administrators import lock_admins
from services.auth.service.room import KEYS, Room
from services.auth.service.sessions import SessionService, Tokens
from services.auth.service.step_up import require_fresh, require_living
from services.auth.store import admin_logs, sessions, users

# What the list of a user's sessions calls an impersonator's.
DEVICE = "Impersonation by an administrator"


class AdminService:
    """
    What administrators do to accounts.

    Every action locks the administrators, then its user, then the end of the log:
    one order, so that no two wait for each other.
    """

    def __init__(self, room: Room, sessions: SessionService) -> None:
        self._room = room
        self._sessions = sessions

    async def search_users(
        self, wanted: UserFilter, *, before: tuple[datetime, UUID] | None, limit: int
    ) -> tuple[Sequence[User], bool]:
        """Returns a page, newest first, and whether there is another."""
        async with self._room.database.transaction() as conn:
            found = await users.search_users(
                conn, wanted, before=before, limit=limit + 1, now=self._room.clock.now()
            )
        return found[:limit], len(found) > limit

    async def list_logs(
        self, wanted: LogFilter, *, before: int | None, limit: int
    ) -> tuple[Sequence[AdminLog], bool]:
        """Returns a page of the admin log, newest first, and whether there is another."""
        async with self._room.database.connection() as conn:
            found = await admin_logs.list_admin_logs(conn, wanted, before=before, limit=limit + 1)
        return found[:limit], len(found) > limit

    async def ban_user(
        self, *, user_id: UUID, reason: str, until: datetime | None, caller: Caller, key: Key | None
    ) -> User:
        """
        Keeps a user out until a time, or for good, and ends all that is open.

        A login locks the account too: it is either over before, and its session is
        ended here, or it finds the ban. The last administrator is banned by nobody:
        itself is SelfBan, and to a service every administrator is RoleNotGrantable.
        """
        now = self._room.clock.now()
        ended: Sequence[UUID] = []
        async with self._room.database.transaction() as conn:

            async def effect() -> User:
                nonlocal ended
                if until is not None and until <= now:
                    raise BanExpiryPassed
                if caller.user_id == user_id:
                    raise SelfBan
                await lock_admins(conn, caller, now)
                user = await self._lock_target(conn, user_id, caller)
                if user.erased_at is not None:
                    raise UserNotActive(metadata={"state": UserState.ERASED})
                user = await users.ban_user(conn, user_id, reason=reason, until=until, now=now)
                ended = await sessions.end_sessions(
                    conn, user_id, reason=EndReason.BANNED, by=caller.key, now=now
                )
                end = {"until": until.isoformat()} if until else {}
                details = {"reason": reason, **end, "ended_sessions": str(len(ended))}
                await self._log(
                    conn, Action.BAN_USER, caller=caller, target=user_id, details=details, now=now
                )
                return user

            user = await idempotency.once(conn, KEYS, key, User, effect, now=now)
        await self._room.announce(Revocations(ended, [(user.id, user.token_version)]))
        return user

    async def unban_user(
        self, *, user_id: UUID, reason: str, caller: Caller, key: Key | None
    ) -> User:
        """Lets a user in again; one who is not banned stays as it is, and nothing is logged."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:

            async def effect() -> User:
                await lock_admins(conn, caller, now)
                user = await self._lock_target(conn, user_id, caller)
                unbanned = await users.unban_user(conn, user_id)
                if unbanned is None:
                    return user
                details = {"reason": reason}
                await self._log(
                    conn, Action.UNBAN_USER, caller=caller, target=user_id, details=details, now=now
                )
                return unbanned

            return await idempotency.once(conn, KEYS, key, User, effect, now=now)

    async def revoke_sessions(
        self, *, user_id: UUID, reason: str, caller: Caller, key: Key | None
    ) -> int:
        """Ends every session and access token of a user; returns how many sessions lived."""
        now = self._room.clock.now()
        ended: Sequence[UUID] = []
        versions: list[tuple[UUID, int]] = []
        async with self._room.database.transaction() as conn:

            async def effect() -> int:
                nonlocal ended
                await lock_admins(conn, caller, now)
                await self._lock_user(conn, user_id)
                ended = await sessions.end_sessions(
                    conn, user_id, reason=EndReason.ADMIN, by=caller.key, now=now
                )
                versions.append((user_id, await users.revoke_tokens(conn, user_id, now)))
                details = {"reason": reason, "ended_sessions": str(len(ended))}
                await self._log(
                    conn,
                    Action.REVOKE_SESSIONS,
                    caller=caller,
                    target=user_id,
                    details=details,
                    now=now,
                )
                return len(ended)

            count = await idempotency.once(conn, KEYS, key, int, effect, now=now)
        await self._room.announce(Revocations(ended, versions))
        return count

    async def impersonate(
        self, *, user_id: UUID, reason: str, address: str | None, caller: Caller, key: Key | None
    ) -> tuple[Tokens, User]:
        """
        Opens a session in which an administrator acts as a user who is none.

        SessionEnded if the administrator's own session is over: what ended it would
        not find the one opened here.
        """
        now = self._room.clock.now()
        opened: tuple[Tokens, User] | None = None
        async with self._room.database.transaction() as conn:
            admin = await users.get_user(conn, caller.user_id) if caller.user_id else None
            if admin is None:
                raise AccessDenied
            require_fresh(caller, admin, now)

            async def effect() -> UUID:
                nonlocal opened
                await lock_admins(conn, caller, now)
                await require_living(conn, caller, self._room.policy, now)
                user = await self._lock_user(conn, user_id)
                if user.role is Role.ADMIN:
                    raise AdminNotImpersonable
                state = state_of(user, now)
                if state is not UserState.ACTIVE:
                    raise UserNotActive(metadata={"state": state})
                tokens = await self._open(conn, user, admin.id, address, now)
                opened = tokens, user
                details = {"reason": reason, "session_id": str(tokens.session.id)}
                await self._log(
                    conn,
                    Action.IMPERSONATE_USER,
                    caller=caller,
                    target=user_id,
                    details=details,
                    now=now,
                )
                return tokens.session.id

            session_id = await idempotency.once(conn, KEYS, key, UUID, effect, now=now)
            return opened or await self._sessions.opened_before(conn, session_id, now)

    async def _open(
        self, conn: Connection, user: User, admin: UUID, address: str | None, now: datetime
    ) -> Tokens:
        """Opens the session beside SessionService.sign_in: the user does not log in."""
        session = Session(
            uuid7(now),
            user.id,
            0,
            now,
            now + IMPERSONATION,
            now,
            amr=(IMPERSONATED,),
            impersonated_by=admin,
        )
        token_id = str(uuid4())
        tokens = self._sessions.tokens(user, session, token_id, now)
        await sessions.insert_session(
            conn,
            session,
            device=DEVICE,
            address=address,
            access_token_id=token_id,
            refresh_digest=digest(tokens.refresh_token),
        )
        return tokens

    async def _lock_target(self, conn: Connection, user_id: UUID, caller: Caller) -> User:
        """Locks a user; RoleNotGrantable for a service if it is an administrator."""
        user = await self._lock_user(conn, user_id)
        # Who is banned is no administrator: a ban takes the role away, and its end gives it back.
        if caller.kind is Kind.SERVICE and user.role is Role.ADMIN:
            raise RoleNotGrantable
        return user

    async def _lock_user(self, conn: Connection, user_id: UUID) -> User:
        user = await users.lock_user(conn, user_id)
        if user is None:
            raise UserNotFound
        return user

    async def _log(
        self,
        conn: Connection,
        action: Action,
        *,
        caller: Caller,
        target: UUID,
        details: Mapping[str, str],
        now: datetime,
    ) -> None:
        await admin_logs.insert_admin_log(
            conn,
            log_id=uuid7(now),
            actor=caller.key,
            action=action,
            target=target,
            details=details,
            now=now,
        )
