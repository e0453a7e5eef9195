"""Leaving, staying and erasing at once: each happens once, and only one of them."""

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from chassis.postgres import Connection
from chassis.refusals import Conflict
from services.auth.domain.users import Role, User
from services.auth.errors import LastAdmin, UserNotFound
from services.auth.service.lifecycle import LifecycleService
from services.auth.store import lifecycle as store
from services.auth.store import users as store_users
from services.auth.worker import erase_due
from tests.auth.leaving import events, leave, mails, register, stay
from tests.factories import (
    GRACE,
    AuthRoom,
    at_once,
)
from tests.fakes import FakeClock

# Races and their controls alike: who comes at once is not kept apart by connecting.
pytestmark = pytest.mark.usefixtures("every_connection")


async def both_leave(auth: AuthRoom, pair: list[User]) -> list[Any]:
    return await at_once(2, lambda index: leave(auth, pair[index]))


async def fifty_leave(auth: AuthRoom, user: User) -> list[Any]:
    return await at_once(50, lambda _: leave(auth, user))


async def requests(owner: Connection) -> int:
    """Counts the mails that say a deletion was asked for."""
    templates = [template for template, _ in await mails(owner)]
    return templates.count("account_deletion_requested")


async def test_two_administrators_cannot_both_leave(auth: AuthRoom, owner: Connection) -> None:
    """Of two who leave at once one is refused, in every round."""
    for _ in range(10):
        pair = [await register(auth, role=Role.ADMIN) for _ in range(2)]
        answers = await both_leave(auth, pair)
        assert sorted(type(answer).__name__ for answer in answers) == ["LastAdmin", "User"]
        await owner.execute("UPDATE users SET role = 'free'")


async def test_without_the_lock_both_would_leave(
    auth: AuthRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: administrators that are counted and not locked leave together."""
    both_counted = asyncio.Barrier(2)

    async def count_only(conn: Connection, _: datetime) -> list[UUID]:
        rows = await conn.fetch("SELECT id FROM users WHERE role = 'admin' ORDER BY id")
        await both_counted.wait()
        return [row["id"] for row in rows]

    pair = [await register(auth, role=Role.ADMIN) for _ in range(2)]
    monkeypatch.setattr(store_users, "lock_admins", count_only)
    answers = await both_leave(auth, pair)
    assert not any(isinstance(answer, LastAdmin) for answer in answers)


async def test_a_role_given_in_this_very_moment_is_asked_about_again(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who becomes an administrator between the question and the write has not left."""
    user = await register(auth)
    request = store.request_deletion

    async def promoted_first(conn: Connection, user_id: UUID, **rest: Any) -> bool:
        await owner.execute("UPDATE users SET role = 'admin' WHERE id = $1", user_id)
        return await request(conn, user_id, **rest)

    monkeypatch.setattr(store, "request_deletion", promoted_first)
    answers = await at_once(1, lambda _: leave(auth, user))
    assert [type(answer) for answer in answers] == [Conflict]
    assert (await auth.accounts.get_user(user.id)).deletion_requested_at is None


async def test_fifty_who_ask_at_once_ask_once(auth: AuthRoom, owner: Connection) -> None:
    """One mail, one day, the same answer for all."""
    for count in range(1, 4):
        user = await register(auth)
        answers = await fifty_leave(auth, user)
        assert answers == [answers[0]] * 50
        assert await requests(owner) == count


async def test_looking_first_would_send_fifty_mails(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the condition in the statement everybody is the first."""

    async def unconditional(
        conn: Connection, user_id: UUID, *, now: datetime, due: datetime, **_: Any
    ) -> bool:
        await conn.execute(
            "UPDATE users SET deletion_requested_at = $2, erasure_due_at = $3 WHERE id = $1",
            user_id,
            now,
            due,
        )
        return True

    user = await register(auth)
    monkeypatch.setattr(store, "request_deletion", unconditional)
    await fifty_leave(auth, user)
    assert await requests(owner) == 50


async def fifty_sweepers(auth: AuthRoom, clock: FakeClock) -> list[Any]:
    lifecycle = LifecycleService(auth.room)
    for _ in range(3):
        await leave(auth, await register(auth))
    clock.advance(days=GRACE.days)
    return await at_once(50, lambda _: erase_due(lifecycle))


async def test_fifty_sweepers_erase_once(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """Each account has one event and one last mail, however many sweep."""
    for rounds in range(1, 4):
        assert sum(await fifty_sweepers(auth, clock)) == 3
        assert len(await events(owner, "user_erased")) == 3 * rounds


async def test_sweepers_without_guards_would_erase_again(
    auth: AuthRoom, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the lock and the condition an account is erased several times."""

    async def look_only(conn: Connection, user_id: UUID, now: datetime) -> str:
        found = await conn.fetchval("SELECT email FROM users WHERE id = $1", user_id)
        await asyncio.sleep(0.05)
        return str(found)

    async def unconditional(conn: Connection, user_id: UUID, *, email: str, now: datetime) -> int:
        return int(
            await conn.fetchval(
                "UPDATE users SET email = $2, erased_at = $3, password_hash = NULL"
                " WHERE id = $1 RETURNING token_version",
                user_id,
                email,
                now,
            )
        )

    monkeypatch.setattr(store, "claim_due", look_only)
    monkeypatch.setattr(store, "erase_user", unconditional)
    await fifty_sweepers(auth, clock)
    assert len(await events(owner, "user_erased")) > 3


async def cancel_against_erase(auth: AuthRoom, clock: FakeClock) -> tuple[User, list[Any]]:
    """One account, 25 cancellations and 25 sweepers at once."""
    lifecycle = LifecycleService(auth.room)
    user = await register(auth)
    await leave(auth, user)
    clock.advance(days=GRACE.days)
    answers = await at_once(
        50, lambda index: stay(auth, user) if index % 2 else erase_due(lifecycle)
    )
    return await auth.accounts.get_user(user.id), answers


async def test_cancelling_or_erasing_wins(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """Never both: who was told that the account stays keeps it."""
    for _ in range(10):
        user, answers = await cancel_against_erase(auth, clock)
        kept = [answer for answer in answers if isinstance(answer, User)]
        refused = [answer for answer in answers if isinstance(answer, UserNotFound)]
        erased = sum(answer for answer in answers if isinstance(answer, int))
        assert len(kept) + len(refused) == 25
        assert (user.erased_at is None, user.deletion_requested_at is None) == (
            erased == 0,
            erased == 0,
        )
        assert erased in (0, 1)
        assert not (kept and erased)
        await owner.execute("DELETE FROM users")


async def test_without_conditions_both_would_win(
    auth: AuthRoom, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: an erasure that looked before the cancellation erases what was kept."""
    await owner.execute("ALTER TABLE users DROP CONSTRAINT users_erased_has_no_way_in")
    claimed, cancelled = asyncio.Event(), asyncio.Event()
    lifecycle = LifecycleService(auth.room)
    user = await register(auth)

    async def look_only(conn: Connection, user_id: UUID, now: datetime) -> str:
        claimed.set()
        await cancelled.wait()
        return user.email

    async def unconditional(conn: Connection, user_id: UUID, *, now: datetime, **_: Any) -> int:
        await conn.execute("UPDATE users SET erased_at = $2 WHERE id = $1", user_id, now)
        return 2

    async def cancel() -> User:
        await claimed.wait()
        kept = await stay(auth, user)
        cancelled.set()
        return kept

    monkeypatch.setattr(store, "claim_due", look_only)
    monkeypatch.setattr(store, "erase_user", unconditional)
    await leave(auth, user)
    clock.advance(days=GRACE.days)
    kept, erased = await asyncio.gather(cancel(), erase_due(lifecycle))
    assert (kept.deletion_requested_at, erased) == (None, 1)
