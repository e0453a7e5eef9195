"""What of a device login may happen once, raced; and each guard taken away."""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from chassis.callers import Caller
from chassis.errors import Code, Refusal
from chassis.postgres import Connection
from services.auth.domain.devices import DeviceLogin, DevicePolicy
from services.auth.domain.sessions import EndReason
from services.auth.domain.users import User
from services.auth.service import devices as device_service
from services.auth.service.devices import DeviceService, Started
from services.auth.service.lifecycle import LifecycleService
from services.auth.service.sessions import Tokens
from services.auth.store import devices as store_devices
from services.auth.store import sessions as store_sessions
from services.auth.store import users as store_users
from tests.auth.devices import HOME, Somebody, approve, poll, refused, somebody, start
from tests.factories import AuthRoom, at_once
from tests.fakes import FakeClock

# Races and their controls alike: who comes at once is not kept apart by connecting.
pytestmark = pytest.mark.usefixtures("every_connection")


@pytest.fixture
def devices(auth: AuthRoom) -> DeviceService:
    return DeviceService(auth.room, auth.sessions)


async def test_no_device_slips_past_a_reset(
    auth: AuthRoom, devices: DeviceService, owner: Connection
) -> None:
    """A claim beside a password reset: whichever is first, no session is left."""
    for _ in range(10):
        ada = await somebody(auth)
        started = await start(devices)
        await approve(devices, ada, started)

        async def call(index: int, ada: Somebody = ada, started: Started = started) -> object:
            return await (poll(devices, started) if index else reset(auth, ada))

        await at_once(2, call)
        assert await living(owner, ada.user.id) == 0


async def test_without_a_look_at_the_approver_a_device_slips_past(
    auth: AuthRoom, devices: DeviceService, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a claim that does not look at the approver's session outlives a reset."""
    monkeypatch.setattr(device_service, "withdrawn", lambda _: False)
    ada = await somebody(auth)
    started = await start(devices)
    await approve(devices, ada, started)
    await reset(auth, ada)
    await poll(devices, started)
    assert await living(owner, ada.user.id) == 1


async def reset(auth: AuthRoom, who: Somebody) -> None:
    """Takes every session away, the account's row first, as a reset of the password does."""
    now = auth.room.clock.now()
    async with auth.room.database.transaction() as conn:
        await store_users.revoke_tokens(conn, who.user.id, now)
        await store_sessions.end_sessions(
            conn, who.user.id, reason=EndReason.PASSWORD_RESET, by="user", now=now
        )


async def living(owner: Connection, user_id: UUID) -> int:
    return int(
        await owner.fetchval(
            "SELECT count(*) FROM sessions WHERE user_id = $1 AND ended_at IS NULL", user_id
        )
    )


async def fifty_polls(
    auth: AuthRoom, devices: DeviceService, *, approved: bool
) -> list[tuple[Tokens, User] | Refusal]:
    started = await start(devices)
    if approved:
        await approve(devices, await somebody(auth), started)
    return await at_once(50, lambda _: poll(devices, started))


def reasons(answers: list[Any]) -> list[str]:
    return [answer.reason if isinstance(answer, Refusal) else "" for answer in answers]


async def test_fifty_polls_open_one_session(
    auth: AuthRoom, devices: DeviceService, owner: Connection
) -> None:
    """Of 50 polls at once after the approval one gets the session, in every round."""
    for round_ in range(1, 4):
        answers = reasons(await fifty_polls(auth, devices, approved=True))
        assert sorted(answers) == ["", *["DEVICE_CODE_INVALID"] * 49]
        count = "SELECT count(*) FROM sessions WHERE device = 'Editor'"
        assert await owner.fetchval(count) == round_


async def test_of_fifty_polls_one_is_on_time(
    auth: AuthRoom, devices: DeviceService, owner: Connection
) -> None:
    """Of 50 polls at once before the approval 49 are too early, and each counts."""
    answers = reasons(await fifty_polls(auth, devices, approved=False))
    assert sorted(answers) == ["AUTHORIZATION_PENDING", *["SLOW_DOWN"] * 49]
    assert await owner.fetchval("SELECT interval_seconds FROM chrome_auth_links") == 5 + 49 * 5


async def test_look_before_poll_would_open_several(
    auth: AuthRoom, devices: DeviceService, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a poll that reads and then writes finds 50 on time and many a session."""

    async def unguarded(conn: Connection, device_code: str, now: datetime) -> DeviceLogin | None:
        polled_at = await conn.fetchval(
            "SELECT last_polled_at FROM chrome_auth_links WHERE device_code = $1", device_code
        )
        login = await store_devices.find_by_device_code(conn, device_code)
        await asyncio.sleep(0.05)
        if polled_at is not None:
            return None
        await conn.execute("UPDATE chrome_auth_links SET last_polled_at = $1", now)
        return login

    monkeypatch.setattr(store_devices, "poll", unguarded)
    pending = reasons(await fifty_polls(auth, devices, approved=False))
    assert pending.count("AUTHORIZATION_PENDING") > 1
    assert reasons(await fifty_polls(auth, devices, approved=True)).count("") > 1


async def fifty_approvals(auth: AuthRoom, devices: DeviceService) -> list[str]:
    people = [await somebody(auth) for _ in range(50)]
    started = await start(devices)
    answers = await at_once(
        50, lambda index: approve(devices, people[index], started, f"192.0.2.{index}")
    )
    return reasons(answers)


async def test_whoever_approves_first_wins(
    auth: AuthRoom, devices: DeviceService, owner: Connection
) -> None:
    """Of 50 users who approve one code at once one has approved, and is told so by mail."""
    answers = await fifty_approvals(auth, devices)
    assert sorted(answers) == ["", *["USER_CODE_INVALID"] * 49]
    mails = "SELECT count(*) FROM auth_outbox WHERE payload->>'template' = 'device_approved'"
    assert await owner.fetchval(mails) == 1


async def test_look_before_approval_would_let_several_win(
    auth: AuthRoom, devices: DeviceService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: an approval that reads and then writes has many winners."""
    guarded = store_devices.approve

    async def unguarded(conn: Connection, user_code: str, *rest: Any) -> DeviceLogin | None:
        login = await store_devices.find_pending(conn, user_code, rest[-1])
        await asyncio.sleep(0.05)
        await guarded(conn, user_code, *rest)
        return login

    monkeypatch.setattr(store_devices, "approve", unguarded)
    assert (await fifty_approvals(auth, devices)).count("") > 1


async def approve_beside_an_erasure(
    auth: AuthRoom, devices: DeviceService, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Erases the approver just before the code is approved; returns how much names it then."""
    ada = await somebody(auth)
    await owner.execute(
        "UPDATE users SET deletion_requested_at = now(), erasure_due_at = $2 WHERE id = $1",
        ada.user.id,
        auth.room.clock.now(),
    )
    guarded = store_devices.approve
    erasures = []

    async def beside(conn: Connection, *rest: Any) -> DeviceLogin | None:
        erasures.append(asyncio.create_task(LifecycleService(auth.room).erase(ada.user.id)))
        # Less than a transaction lasts.
        await asyncio.wait(erasures, timeout=10)
        return await guarded(conn, *rest)

    monkeypatch.setattr(store_devices, "approve", beside)
    await approve(devices, ada, await start(devices))
    # The sweeper passes over who is locked, and comes again.
    assert await erasures[0] or await LifecycleService(auth.room).erase(ada.user.id)
    return int(
        await owner.fetchval(
            "SELECT (SELECT count(*) FROM chrome_auth_links WHERE user_id = $1)"
            " + (SELECT count(*) FROM auth_outbox WHERE payload->>'template' = 'device_approved')",
            ada.user.id,
        )
    )


async def test_an_erasure_takes_what_is_approved_beside_it(
    auth: AuthRoom, devices: DeviceService, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is either before or after; neither the row nor the mail of an approval is left."""
    assert await approve_beside_an_erasure(auth, devices, owner, monkeypatch) == 0


async def test_without_the_lock_an_approval_outlives_its_user(
    auth: AuthRoom, devices: DeviceService, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: an approver who is only read may be gone when it is written."""

    async def read(conn: Connection, caller: Caller) -> User | None:
        return await store_users.get_user(conn, caller.user_id) if caller.user_id else None

    monkeypatch.setattr(device_service, "own", read)
    assert await approve_beside_an_erasure(auth, devices, owner, monkeypatch) == 2


async def test_approvals_and_polls_of_one_user_never_block_each_other(
    auth: AuthRoom, devices: DeviceService
) -> None:
    """Both lock the account and the login, in whichever order: none ends as a deadlock."""
    for _ in range(5):
        ada, started = await somebody(auth), await start(devices)

        async def call(index: int, ada: Somebody = ada, started: Started = started) -> object:
            return await (poll(devices, started) if index % 2 else approve(devices, ada, started))

        answers = reasons(await at_once(50, call))
        told = {"", "AUTHORIZATION_PENDING", "SLOW_DOWN", "DEVICE_CODE_INVALID"}
        assert set(answers) <= told
        assert answers[::2] == [""] * 25


async def fifty_starts(auth: AuthRoom, address: str | None) -> list[str]:
    room = replace(auth.room, devices=DevicePolicy(codes_per_address=20))
    devices = DeviceService(room, auth.sessions)
    return reasons(await at_once(50, lambda _: start(devices, address)))


@pytest.mark.parametrize("address", [HOME, None])
async def test_of_fifty_starts_twenty_wait(
    auth: AuthRoom, devices: DeviceService, clock: FakeClock, address: str | None
) -> None:
    """An address, or all that are unknown, has at most 20 codes that wait, until one is over."""
    answers = await fifty_starts(auth, address)
    assert sorted(answers) == [*[""] * 20, *["TOO_MANY_ATTEMPTS"] * 30]
    clock.advance(seconds=100)
    refusal = await refused(start(devices, address), Code.RESOURCE_EXHAUSTED, "TOO_MANY_ATTEMPTS")
    assert refusal.retry_after == 500
    await start(devices, "198.51.100.7")
    clock.advance(seconds=500)
    await start(devices, address)


async def test_a_network_s_addresses_wait_together(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """Whoever has an IPv6 /64 has the codes of one address; what is shown is the address itself."""
    room = replace(auth.room, devices=DevicePolicy(codes_per_address=2))
    devices = DeviceService(room, auth.sessions)
    for number in (1, 2):
        await start(devices, f"2001:db8:1:2::{number}")
    third = start(devices, "2001:db8:1:2:3:4:5:6")
    await refused(third, Code.RESOURCE_EXHAUSTED, "TOO_MANY_ATTEMPTS")
    await start(devices, "2001:db8:1:3::1")
    shown = await owner.fetch("SELECT address FROM chrome_auth_links ORDER BY address LIMIT 2")
    assert [row["address"] for row in shown] == ["2001:db8:1:2::1", "2001:db8:1:2::2"]


async def test_count_before_start_would_let_more_wait(
    auth: AuthRoom, devices: DeviceService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the lock, starts that come together all find room."""
    # As many connections start together: few enough places must be left for fewer.
    for _ in range(18):
        await start(devices, HOME)

    count = store_devices.full_until

    async def no_lock(conn: Connection, address: str) -> None:
        """Waits for nobody."""

    async def slowly(conn: Connection, address: str, **limits: Any) -> Any:
        found = await count(conn, address, **limits)
        await asyncio.sleep(0.2)
        return found

    monkeypatch.setattr(store_devices, "lock_network", no_lock)
    monkeypatch.setattr(store_devices, "full_until", slowly)
    assert (await fifty_starts(auth, HOME)).count("") > 2
