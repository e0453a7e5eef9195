"""Sessions as their user sees and ends them, and why one ended."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from chassis.callers import Caller
from chassis.ids import uuid7
from chassis.revocations import Revocations
from services.auth.domain.admin_logs import Action
from services.auth.domain.session_list import ListedSession, Shown, show
from services.auth.domain.sessions import EndReason, over
from services.auth.errors import SessionEnded, SessionNotFound
from services.auth.service.administrators import lock_admins
from services.auth.service.room import Room
from services.auth.store import admin_logs, session_list, sessions, users


class SessionListService:
    """The sessions of a user; one that is not the user's is SessionNotFound."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def list(
        self, user_id: UUID, *, include_ended: bool, before: UUID | None, limit: int
    ) -> tuple[Sequence[Shown], UUID | None]:
        """Returns a page, newest first, and the id after which the next one starts."""
        now = self._room.clock.now()
        async with self._room.database.connection() as conn:
            found = await session_list.list_sessions(
                conn,
                user_id,
                before=before,
                now=now,
                idle_since=now - self._room.policy.idle,
                include_ended=include_ended,
                limit=limit + 1,
            )
        last = found[limit - 1].session.id if len(found) > limit else None
        return [self._shown(listed, now) for listed in found[:limit]], last

    async def explain(self, user_id: UUID, session_id: UUID) -> Shown:
        """Returns a session, over or not."""
        async with self._room.database.connection() as conn:
            found = await session_list.find_session(conn, user_id, session_id)
        if found is None:
            raise SessionNotFound
        return self._shown(found, self._room.clock.now())

    async def name(self, user_id: UUID, session_id: UUID, device: str) -> Shown:
        """Names a living session."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            named = await session_list.name_session(
                conn,
                user_id,
                session_id,
                now=now,
                idle_since=now - self._room.policy.idle,
                device=device,
            )
        if named is None:
            raise SessionNotFound
        return self._shown(named, now)

    async def revoke(self, user_id: UUID, session_id: UUID, *, caller: Caller, why: str) -> Shown:
        """
        Ends a session, once; the admin log has it if the owner did not do it.

        AccessDenied for somebody else who is no administrator any more, StepUpRequired
        for one without a fresh proof of who is there.
        """
        now, by_owner = self._room.clock.now(), caller.user_id == user_id
        reason = EndReason.REVOKED if by_owner else EndReason.ADMIN
        async with self._room.database.transaction() as conn:
            if not by_owner:
                await lock_admins(conn, caller, now)
            if await session_list.find_session(conn, user_id, session_id) is None:
                raise SessionNotFound
            ended = await sessions.end_session(
                conn, session_id, reason=reason, by=caller.key, now=now
            )
            if ended and not by_owner:
                await admin_logs.insert_admin_log(
                    conn,
                    log_id=uuid7(now),
                    actor=caller.key,
                    action=Action.REVOKE_SESSION,
                    target=user_id,
                    details={"session_id": str(session_id), "reason": why},
                    now=now,
                )
            found = await session_list.find_session(conn, user_id, session_id)
        if ended:
            await self._room.announce(Revocations([session_id], []))
        if found is None:
            raise SessionNotFound
        return self._shown(found, now)

    async def revoke_others(self, user_id: UUID, spared: UUID, *, actor: str) -> int:
        """Ends all sessions but `spared`; SessionEnded if that one is over itself."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            # Of two sessions that end each other, the account's lock lets one win.
            await users.lock_user(conn, user_id)
            own = await sessions.get_session(conn, spared)
            why = over(own, self._room.policy, now) if own else EndReason.EXPIRED
            if why is not None:
                raise SessionEnded(metadata={"end_reason": why})
            ended = await sessions.end_sessions(
                conn, user_id, reason=EndReason.REVOKED, by=actor, now=now, spare=spared
            )
        if ended:
            await self._room.announce(Revocations(ended, []))
        return len(ended)

    def _shown(self, listed: ListedSession, now: datetime) -> Shown:
        return show(listed, self._room.policy, now)
