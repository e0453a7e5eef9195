"""Who may give and take which role, by reason; and that the first administrator is one."""

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from finity.auth.v1 import auth_pb2
from grpc import StatusCode

from chassis.callers import Caller
from chassis.errors import Code, Refusal
from chassis.postgres import Connection
from services.auth.domain.admin import service_may_change
from services.auth.domain.users import Role, User
from services.auth.service.lifecycle import LifecycleService
from services.auth.store import users as store_users
from services.auth.worker import erase_due
from tests.auth.leaving import fresh, leave, register
from tests.auth.test_mfa_rpc import refusal
from tests.factories import GRACE, SERVICE, AuthRoom, at_once, connect_owner
from tests.fakes import FakeClock
from tests.running import House

NOT_GRANTABLE = (StatusCode.PERMISSION_DENIED, "ROLE_NOT_GRANTABLE")


async def give(auth: AuthRoom, user: User, role: Role, actor: Caller = SERVICE) -> User:
    return await auth.accounts.set_role(
        user_id=user.id, role=role, reason="test", actor=actor, key=None
    )


@pytest.mark.parametrize(
    ("before", "after", "administered", "may"),
    [
        (Role.FREE, Role.PRO, True, True),
        (Role.PRO, Role.FREE, True, True),
        (Role.FREE, Role.PRO, False, True),
        (Role.FREE, Role.ADMIN, True, False),
        (Role.PRO, Role.ADMIN, True, False),
        (Role.FREE, Role.ADMIN, False, True),
        (Role.ADMIN, Role.FREE, True, False),
        (Role.ADMIN, Role.PRO, False, False),
    ],
)
def test_a_service_changes_plans(before: Role, after: Role, administered: bool, may: bool) -> None:
    """Free and pro, and the first administrator of all."""
    assert service_may_change(before, after, administered=administered) is may


async def test_a_service_makes_the_first_administrator_alone(
    auth: AuthRoom, owner: Connection
) -> None:
    """While there is one, it neither makes a second nor takes the role of the first."""
    ada, bob = await register(auth), await register(auth)
    assert (await give(auth, ada, Role.ADMIN)).role is Role.ADMIN
    # Sent again, as the suite does each time it starts.
    assert (await give(auth, ada, Role.ADMIN)).role is Role.ADMIN
    for user, role in ((bob, Role.ADMIN), (ada, Role.FREE), (ada, Role.PRO)):
        with pytest.raises(Refusal) as refused:
            await give(auth, user, role)
        assert (refused.value.code, refused.value.reason) == (
            Code.PERMISSION_DENIED,
            "ROLE_NOT_GRANTABLE",
        )
    assert (await give(auth, bob, Role.PRO)).role is Role.PRO
    assert (await give(auth, bob, Role.ADMIN, fresh(auth, ada))).role is Role.ADMIN
    assert (await give(auth, ada, Role.FREE, fresh(auth, bob))).role is Role.FREE
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") == 4


async def test_an_erased_account_has_no_role(auth: AuthRoom, clock: FakeClock) -> None:
    """Nobody gives one to who is gone, not even the one it has."""
    user, boss = await register(auth), await register(auth, role=Role.ADMIN)
    await leave(auth, user)
    clock.advance(seconds=GRACE.total_seconds())
    await erase_due(LifecycleService(auth.room))
    for actor in (SERVICE, fresh(auth, boss)):
        for role in Role:
            with pytest.raises(Refusal) as refused:
                await give(auth, user, role, actor)
            assert (refused.value.reason, refused.value.metadata) == (
                "USER_NOT_ACTIVE",
                {"state": "erased"},
            )


async def first_at_once(auth: AuthRoom, owner: Connection) -> tuple[list[Any], int]:
    """Fifty users are made the first administrator at once; returns answers and how many are."""
    people = [await register(auth) for _ in range(50)]
    answers = await at_once(50, lambda index: give(auth, people[index], Role.ADMIN))
    admins = await owner.fetchval("SELECT count(*) FROM users WHERE role = 'admin'")
    await owner.execute("UPDATE users SET role = 'free'")
    return answers, admins


async def test_there_is_one_first_administrator(auth: AuthRoom, owner: Connection) -> None:
    """Of fifty that a service makes at once one is, in every round."""
    for _ in range(3):
        answers, admins = await first_at_once(auth, owner)
        assert admins == 1
        assert sorted({type(answer).__name__ for answer in answers}) == ["RoleNotGrantable", "User"]


async def test_without_the_lock_there_would_be_several(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: who only looks whether there is an administrator makes several."""

    people, looked = [await register(auth) for _ in range(2)], asyncio.Barrier(2)
    look = store_users.lock_admins

    async def trusting(_: Connection) -> None:
        """Waits for nobody."""

    async def look_together(conn: Connection, now: datetime) -> list[UUID]:
        admins = await look(conn, now)
        await looked.wait()
        return admins

    monkeypatch.setattr(store_users, "lock_first_admin", trusting)
    monkeypatch.setattr(store_users, "lock_admins", look_together)
    await at_once(2, lambda index: give(auth, people[index], Role.ADMIN))
    assert await owner.fetchval("SELECT count(*) FROM users WHERE role = 'admin'") == 2


async def test_what_a_service_may_give_on_the_wire(house: House) -> None:
    """Plans change; no administrator is made or unmade; who is erased is refused."""
    admin, person = await house.person(role=auth_pb2.ROLE_ADMIN), await house.person()

    def ask(user_id: str, role: "auth_pb2.Role.ValueType") -> Any:
        request = auth_pb2.SetRoleRequest(user_id=user_id, role=role, reason="test")
        return house.auth.SetRole(request, metadata=house.service)

    assert await refusal(ask(person.user_id, auth_pb2.ROLE_ADMIN)) == NOT_GRANTABLE
    assert await refusal(ask(admin.user_id, auth_pb2.ROLE_FREE)) == NOT_GRANTABLE
    assert (await ask(person.user_id, auth_pb2.ROLE_PRO)).user.role == auth_pb2.ROLE_PRO
    async with connect_owner(house.database_url) as owner:
        await owner.execute(
            "UPDATE users SET deletion_requested_at = now(), erasure_due_at = now(),"
            " erased_at = now(), password_hash = NULL WHERE id = $1",
            UUID(person.user_id),
        )
    assert await refusal(ask(person.user_id, auth_pb2.ROLE_FREE)) == (
        StatusCode.FAILED_PRECONDITION,
        "USER_NOT_ACTIVE",
    )
