"""NotifyUser: what another room has to say, mailed once, to whoever may be written to."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from finity.auth.v1 import email_pb2, email_pb2_grpc
from grpc import StatusCode, aio

from chassis.idempotency import Key
from chassis.postgres import Connection
from services.auth.service.notices import USAGE_THRESHOLD, NoticeService
from tests.factories import AuthRoom, an_address, at_once, connect_owner
from tests.mailbox import templates
from tests.running import PASSWORD, House, refusal_of

VALUES = {"month": "2026-01", "percent": "80", "used": "8", "available": "2"}


async def a_reader(auth: AuthRoom, owner: Connection) -> tuple[UUID, str]:
    """Returns a user whose address is verified, and the address."""
    email = an_address()
    user = await auth.accounts.register(email=email, password=PASSWORD, key=None)
    await owner.execute("UPDATE users SET email_verified_at = now() WHERE id = $1", user.id)
    return user.id, email


async def notify(auth: AuthRoom, user_id: UUID, key: str = "") -> bool:
    claimed = Key("service:usage", "NotifyUser", key, key.encode()) if key else None
    return await NoticeService(auth.room).notify(user_id, USAGE_THRESHOLD, VALUES, claimed)


async def mails(owner: Connection, email: str) -> int:
    return (await templates(owner, email)).count(USAGE_THRESHOLD)


async def test_an_event_is_one_mail(auth: AuthRoom, owner: Connection) -> None:
    """50 deliveries of an event at once answer alike and send one mail; another event another."""
    user_id, email = await a_reader(auth, owner)
    answers = await at_once(50, lambda _: notify(auth, user_id, "event"))
    assert set(answers) == {True}
    assert await mails(owner, email) == 1
    assert await notify(auth, user_id, "other event")
    assert await mails(owner, email) == 2


async def test_without_the_key_each_delivery_is_a_mail(auth: AuthRoom, owner: Connection) -> None:
    """Control: it is the key that makes it one."""
    user_id, email = await a_reader(auth, owner)
    await at_once(5, lambda _: notify(auth, user_id))
    assert await mails(owner, email) == 5


ERASED = (
    "password_hash = NULL, deletion_requested_at = now(), erasure_due_at = now(), erased_at = now()"
)


@pytest.mark.parametrize(
    "change", ["email_verified_at = NULL", "banned_at = now(), ban_reason = 'test'", ERASED]
)
async def test_nobody_else_is_written_to(auth: AuthRoom, owner: Connection, change: str) -> None:
    """An unverified address, a banned or erased account and an unknown user get nothing."""
    user_id, email = await a_reader(auth, owner)
    await owner.execute(f"UPDATE users SET {change} WHERE id = $1", user_id)  # noqa: S608
    assert not await notify(auth, user_id)
    assert not await notify(auth, uuid4())
    assert await mails(owner, email) == 0


async def test_a_notice_over_the_wire(house: House) -> None:
    """Services alone may send one, with something to say; the same key with another is refused."""
    person = await house.person()
    stub = email_pb2_grpc.EmailServiceStub(house.auth_channel)

    def request(**changes: Any) -> email_pb2.NotifyUserRequest:
        said = email_pb2.UsageThreshold(month="2026-01", percent=80, used=8, available=2)
        fields = {"user_id": person.user_id, "idempotency_key": "event", "usage_threshold": said}
        return email_pb2.NotifyUserRequest(**{**fields, **changes})

    async with connect_owner(house.database_url) as owner:
        await owner.execute("UPDATE users SET email_verified_at = now()")
        for _ in range(2):
            assert (await stub.NotifyUser(request(), metadata=house.service)).sent
        assert await mails(owner, person.email) == 1
    empty = email_pb2.UsageThreshold(month="2026-13", percent=101)
    for wrong, code, reason in (
        ({"usage_threshold": None}, StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"usage_threshold": empty}, StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"user_id": str(uuid4())}, StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED"),
    ):
        with pytest.raises(aio.AioRpcError) as refused:
            await stub.NotifyUser(request(**wrong), metadata=house.service)
        assert refusal_of(refused.value) == (code, reason)
