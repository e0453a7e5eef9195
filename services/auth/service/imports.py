"""Accounts that come from another system with the hashes of their passwords."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from chassis.ids import uuid7
from services.auth import hashes
from services.auth.domain.imports import (
    Imported,
    Newcomer,
    Outcome,
    Rejection,
    created_at,
    judge,
)
from services.auth.domain.users import Role
from services.auth.service.accounts import ROLE_CHANGED, USAGE, USER_REGISTERED
from services.auth.service.room import Room
from services.auth.store.imports import (
    NewUser,
    enqueue_all,
    find_ids,
    insert_users,
    log_roles,
)


class ImportService:
    """Brings users of another system."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def import_users(self, newcomers: Sequence[Newcomer], *, actor: str) -> list[Imported]:
        """
        Creates the accounts that can be, all in one transaction, and announces them.

        Nothing of an address that has an account is changed, so a call may be
        repeated. What becomes of one user does not touch another.
        """
        now = self._room.clock.now()
        judged = [(one, judge(one, now) or _hash_fault(one)) for one in newcomers]
        rows = _rows([one for one, rejection in judged if rejection is None], now)
        async with self._room.database.transaction() as conn:
            created = await insert_users(conn, list(rows.values()))
            new = [row for row in rows.values() if row.id in created]
            payloads = [{"user_id": str(row.id)} for row in new]
            await enqueue_all(conn, USER_REGISTERED, payloads, USAGE, now)
            known = await find_ids(conn, list(rows))
            raised = [row for row in new if row.role is not Role.FREE]
            await enqueue_all(conn, ROLE_CHANGED, [_role(row) for row in raised], USAGE, now)
            await log_roles(conn, raised, actor=actor, now=now)
        self._room.wake_relay()
        return [
            Imported(Outcome.REJECTED, rejection=rejection)
            if rejection
            else _settled(known.get(one.email), created)
            for one, rejection in judged
        ]


def _role(row: NewUser) -> dict[str, str]:
    """Returns the payload of role_changed of a new account; every later one is newer."""
    return {"user_id": str(row.id), "role": row.role, "sequence": "1"}


def _hash_fault(newcomer: Newcomer) -> Rejection | None:
    return hashes.fault(newcomer.password_hash) if newcomer.password_hash else None


def _settled(user_id: UUID | None, created: set[UUID]) -> Imported:
    """Says what became of an address; the first one of it in the call is who was created."""
    if user_id not in created:
        return Imported(Outcome.DUPLICATE, user_id)
    created.remove(user_id)
    return Imported(Outcome.CREATED, user_id)


def _rows(newcomers: Sequence[Newcomer], now: datetime) -> dict[str, NewUser]:
    """Returns the row of each address: its first user's."""
    rows: dict[str, NewUser] = {}
    for one in newcomers:
        at = created_at(one, now) or now
        row = NewUser(
            id=uuid7(at),
            email=one.email,
            password_hash=one.password_hash or None,
            role=one.role or Role.FREE,
            created_at=at,
            email_verified_at=now if one.email_verified else None,
        )
        rows.setdefault(one.email, row)
    return rows
