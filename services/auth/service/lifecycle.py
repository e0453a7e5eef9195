"""The end of an account: asking for it, changing one's mind, erasing; and what is known of it."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from chassis import outbox
from chassis.callers import Caller
from chassis.ids import uuid7
from chassis.postgres import Connection
from chassis.refusals import Conflict
from chassis.revocations import Revocations
from services.auth.domain.admin_logs import Action
from services.auth.domain.lifecycle import (
    EXPORTED_RECORDS,
    Export,
    erased_email,
    export_filename,
    sign_in_methods,
)
from services.auth.domain.sessions import EndReason
from services.auth.domain.users import Role, User
from services.auth.errors import LastAdmin, UserNotFound
from services.auth.service import mail
from services.auth.service.accounts import USAGE
from services.auth.service.administrators import lock_admins
from services.auth.service.mail import Mail
from services.auth.service.room import ROOM, Room
from services.auth.service.step_up import require_fresh
from services.auth.store import admin_logs, lifecycle, sessions, users

USER_ERASED = "user_erased"
ERASED_AT_ONCE = 20


class LifecycleService:
    """How accounts end."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def request_deletion(self, *, caller: Caller) -> User:
        """
        Asks for the erasure of the caller's account after the grace and ends its sessions.

        A deletion that was asked for before keeps its day. StepUpRequired without a
        fresh proof of who is there, LastAdmin for the last administrator.
        """
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            user = await _get_living(conn, caller.user_id)
            require_fresh(caller, user, now)
            if user.role is Role.ADMIN and await users.lock_admins(conn, now) == [user.id]:
                raise LastAdmin
            due = now + self._room.deletion_grace
            if await lifecycle.request_deletion(conn, user.id, role=user.role, now=now, due=due):
                values = {"at": now.isoformat(), "erased_at": due.isoformat()}
                asked = Mail("account_deletion_requested", user.email, values, about=user.id)
                await mail.enqueue(conn, asked, now)
            user = await _get_living(conn, user.id)
            if user.deletion_requested_at is None:
                # The role changed in this very moment: whether it is the last is to be asked again.
                raise Conflict
            ended = await sessions.end_sessions(
                conn, user.id, reason=EndReason.DELETED, by=caller.key, now=now
            )
        await self._room.announce(Revocations(ended, []))
        self._room.wake_relay()
        return user

    async def cancel_deletion(self, *, caller: Caller) -> User:
        """Keeps the caller's account, which was to be erased; UserNotFound once it is."""
        async with self._room.database.transaction() as conn:
            user = await _get_living(conn, caller.user_id)
            await lifecycle.cancel_deletion(conn, user.id)
            return await _get_living(conn, user.id)

    async def list_due(self) -> Sequence[UUID]:
        """Returns a batch of accounts whose grace is over."""
        async with self._room.database.connection() as conn:
            return await lifecycle.list_due(conn, self._room.clock.now(), ERASED_AT_ONCE)

    async def erase(self, user_id: UUID) -> bool:
        """Erases an account whose grace is over; False if it is not, or somebody else does it."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            address = await lifecycle.claim_due(conn, user_id, now)
            if address is None:
                return False
            version = await lifecycle.erase_user(
                conn, user_id, email=erased_email(uuid4()), now=now
            )
            if version is None:
                return False
            await lifecycle.delete_personal(conn, user_id)
            # What was answered or written to a former address names it as well.
            await lifecycle.forget_answers(conn, user_id)
            await lifecycle.forget_mail_about(conn, user_id)
            await lifecycle.forget_mail_to(conn, address)
            last = Mail("account_deleted", address, {"at": now.isoformat()}, about=user_id)
            await mail.enqueue(conn, last, now)
            payload = {"user_id": str(user_id)}
            await outbox.enqueue(conn, ROOM, USER_ERASED, payload, [USAGE], now=now)
        await self._room.announce(Revocations([], [(user_id, version)]))
        self._room.wake_relay()
        return True

    async def export(self, user_id: UUID, *, caller: Caller) -> Export:
        """
        Returns everything the room holds about a user; somebody else's export is logged.

        StepUpRequired without a fresh proof of who asks, AccessDenied for who is no
        administrator any more.
        """
        now = self._room.clock.now()
        data: dict[str, Any] = {}
        omitted: dict[str, int] = {}
        async with self._room.database.transaction() as conn:
            if caller.user_id == user_id:
                require_fresh(caller, await _get_living(conn, user_id), now)
            else:
                await lock_admins(conn, caller, now)
            account = await lifecycle.export_account(conn, user_id)
            if account is None:
                raise UserNotFound
            found = {
                "pending_mails": await lifecycle.export_pending_mails(
                    conn, account["email"], EXPORTED_RECORDS
                ),
                "admin_log": await lifecycle.export_admin_log(conn, user_id, EXPORTED_RECORDS),
            }
            for table in lifecycle.PERSONAL:
                found[table] = await lifecycle.export_records(
                    conn, table, user_id, EXPORTED_RECORDS
                )
            # Last: it holds the head of the log until the commit.
            if caller.user_id != user_id:
                await admin_logs.insert_admin_log(
                    conn,
                    log_id=uuid7(now),
                    actor=caller.key,
                    action=Action.EXPORT_USER_DATA,
                    target=user_id,
                    details={},
                    now=now,
                )
        for kind, (records, total) in found.items():
            data[kind] = records
            if total > len(records):
                omitted[kind] = total - len(records)
        data |= {"account": account, "sign_in_methods": sign_in_methods(account)}
        data |= {"exported_at": now.isoformat(), "omitted": omitted}
        return Export(export_filename(user_id, now), data)


async def _get_living(conn: Connection, user_id: UUID | None) -> User:
    """Returns an account that is not erased, as it is now."""
    user = await users.get_user(conn, user_id) if user_id else None
    if user is None or user.erased_at is not None:
        raise UserNotFound
    return user
