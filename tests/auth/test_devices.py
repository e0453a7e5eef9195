"""Logins of plugins and devices: the flow, its refusals, its races and who stands for them."""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import jwt
import pytest

from chassis.callers import Caller
from chassis.errors import Code, Refusal
from chassis.postgres import Connection
from services.auth.domain.devices import (
    ALPHABET,
    LIFETIME,
    USER_CODES,
    DeviceLogin,
    DevicePolicy,
    digest_user_code,
    spell_user_code,
)
from services.auth.domain.sessions import Acr, EndReason, Means, digest
from services.auth.domain.users import User
from services.auth.service import devices as device_service
from services.auth.service.devices import DeviceService, Started
from services.auth.service.sessions import Tokens
from services.auth.store import devices as store_devices
from services.auth.store import sessions as store_sessions
from services.auth.store import users as store_users
from tests.factories import AuthRoom, an_address, at_once, log_in, reason_of
from tests.fakes import FakeClock
from tests.running import PASSWORD

HOME = "192.0.2.1"
WRONG = "BBBB-BBBB"


@dataclass(slots=True)
class Somebody:
    """A user who is logged in, in whatever way."""

    user: User
    caller: Caller
    tokens: Tokens


@pytest.fixture
def devices(auth: AuthRoom) -> DeviceService:
    return DeviceService(auth.room, auth.sessions)


async def somebody(auth: AuthRoom, means: Means | None = None) -> Somebody:
    email = an_address()
    user = await auth.accounts.register(email=email, password=PASSWORD, key=None)
    if means is None:
        tokens, user = await log_in(auth, email)
    else:
        async with auth.room.database.transaction() as conn:
            now = auth.room.clock.now()
            tokens, user = await auth.sessions.sign_in(conn, user.id, means, now)
    return Somebody(user, await auth.verifier.verify(tokens.access_token), tokens)


async def start(devices: DeviceService, address: str | None = HOME) -> Started:
    return await devices.start(client_name="Editor", address=address)


async def approve(
    devices: DeviceService, who: Somebody, started: Started, address: str = HOME
) -> DeviceLogin:
    return await devices.approve(caller=who.caller, user_code=started.user_code, address=address)


async def poll(devices: DeviceService, started: Started) -> tuple[Tokens, User]:
    return await devices.poll(started.device_code, address=HOME)


async def refused(call: Any, code: Code, reason: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await call
    assert (caught.value.code, caught.value.reason) == (code, reason)
    return caught.value


async def ban(owner: Connection, user: User, clock: FakeClock) -> None:
    await owner.execute(
        "UPDATE users SET banned_at = $2, ban_reason = 'test' WHERE id = $1", user.id, clock.now()
    )


def test_codes_are_easy_to_read_and_hard_to_guess() -> None:
    """Twenty letters without vowels, eight a code, each number below 20^8 its own spelling."""
    assert len(set(ALPHABET)) == 20
    assert USER_CODES == 25_600_000_000
    assert spell_user_code(0) == "BBBB-BBBB"
    assert spell_user_code(21) == "BBBB-BBCC"
    assert spell_user_code(USER_CODES - 1) == "ZZZZ-ZZZZ"


@pytest.mark.parametrize("typed", ["wdjb-mjht", "WDJBMJHT", "\twdjb\u2013mj ht ", "WDJB_MJHT"])
def test_a_code_may_be_typed_in_any_way(typed: str) -> None:
    """Case, dashes and spaces do not matter (RFC 8628 section 6.1); letters and the key do."""
    key = bytes(32)
    assert digest_user_code(key, typed) == digest_user_code(key, "WDJB-MJHT")
    assert digest_user_code(key, typed) != digest_user_code(key, "WDJB-MJHV")
    assert digest_user_code(key, typed) != digest_user_code(bytes([1]) * 32, "WDJB-MJHT")


async def test_a_device_logs_in(
    auth: AuthRoom, devices: DeviceService, owner: Connection, clock: FakeClock
) -> None:
    """Start, pending, approval, session: the device's own, named after it, of the approver."""
    ada = await somebody(auth)
    started = await start(devices)
    waiting = await refused(
        poll(devices, started), Code.FAILED_PRECONDITION, "AUTHORIZATION_PENDING"
    )
    assert (waiting.metadata, waiting.retry_after) == ({"interval": "5"}, 5.0)
    shown = await devices.inspect(caller=ada.caller, user_code=started.user_code, address=HOME)
    assert shown == started.login
    assert (shown.client_name, shown.address, shown.created_at) == ("Editor", HOME, clock.now())
    await approve(devices, ada, started)
    clock.advance(seconds=5)
    tokens, user = await poll(devices, started)
    assert user.id == ada.user.id
    caller = await auth.verifier.verify(tokens.access_token)
    assert (caller.user_id, caller.session_id) == (ada.user.id, tokens.session.id)
    row = await owner.fetchrow(
        "SELECT device, host(address) AS address, acr, amr FROM sessions WHERE id = $1",
        tokens.session.id,
    )
    assert tuple(row) == ("Editor", HOME, "aal1", ["pwd"])
    clock.advance(minutes=1)
    assert (await auth.sessions.refresh(tokens.refresh_token)).session.id == tokens.session.id


async def test_nothing_secret_is_stored(
    auth: AuthRoom, devices: DeviceService, owner: Connection, clock: FakeClock
) -> None:
    """Neither code is in the table or the outbox: a SHA-256 of one, an HMAC of the other."""
    ada = await somebody(auth)
    started = await start(devices)
    await approve(devices, ada, started)
    row = await owner.fetchrow("SELECT device_code, user_code FROM chrome_auth_links")
    assert row["device_code"] == digest(started.device_code)
    assert len(started.device_code) == 43
    written = await owner.fetchval(
        "SELECT (SELECT string_agg(l::text, '') FROM chrome_auth_links l)"
        " || (SELECT string_agg(o::text, '') FROM auth_outbox o)"
    )
    assert ada.user.email in written
    for secret in (started.device_code, started.user_code, started.user_code.replace("-", "")):
        assert secret not in written


async def test_the_approver_is_told_by_mail(
    auth: AuthRoom, devices: DeviceService, owner: Connection
) -> None:
    """One mail in the approval's transaction, however often it is repeated."""
    ada = await somebody(auth)
    started = await start(devices)
    await approve(devices, ada, started)
    await approve(devices, ada, started)
    rows = await owner.fetch(
        "SELECT o.payload->>'template' AS template, o.payload->>'to' AS recipient,"
        " o.payload->'values'->>'client' AS client, o.xmin::text = l.xmin::text AS together"
        " FROM auth_outbox o, chrome_auth_links l WHERE o.topic = 'mail'"
    )
    assert [tuple(row) for row in rows if row["template"] == "device_approved"] == [
        ("device_approved", ada.user.email, "Editor", True)
    ]


async def test_an_early_poll_slows_all_later_ones(devices: DeviceService, clock: FakeClock) -> None:
    """5 s more for each poll that comes too early, and for good (RFC 8628 section 3.5)."""
    started = await start(devices)
    assert await reason_of(poll(devices, started)) == "AUTHORIZATION_PENDING"
    clock.advance(seconds=4.999)
    slower = await refused(poll(devices, started), Code.RESOURCE_EXHAUSTED, "SLOW_DOWN")
    assert (slower.metadata, slower.retry_after) == ({"interval": "10"}, 10.0)
    clock.advance(seconds=9.999)
    assert (await refused(poll(devices, started), Code.RESOURCE_EXHAUSTED, "SLOW_DOWN")).metadata[
        "interval"
    ] == "15"
    for _ in range(2):
        clock.advance(seconds=15)
        assert await reason_of(poll(devices, started)) == "AUTHORIZATION_PENDING"


async def test_a_login_is_over_after_ten_minutes(
    auth: AuthRoom, devices: DeviceService, clock: FakeClock
) -> None:
    """Both codes end together, approved or not; an unknown device code is another refusal."""
    ada = await somebody(auth)
    started, approved = await start(devices), await start(devices)
    await approve(devices, ada, approved)
    clock.advance(seconds=LIFETIME.total_seconds())
    expired = (Code.UNAUTHENTICATED, "DEVICE_CODE_EXPIRED")
    await refused(poll(devices, started), *expired)
    await refused(poll(devices, approved), *expired)
    await refused(approve(devices, ada, started), Code.NOT_FOUND, "USER_CODE_INVALID")
    unknown = devices.poll("unknown", address=HOME)
    await refused(unknown, Code.UNAUTHENTICATED, "DEVICE_CODE_INVALID")


async def test_a_denied_device_stays_out(
    auth: AuthRoom, devices: DeviceService, clock: FakeClock
) -> None:
    """After a denial, repeated or not, polls are refused for good and nobody can approve."""
    ada = await somebody(auth)
    started = await start(devices)
    for _ in range(2):
        await devices.deny(caller=ada.caller, user_code=started.user_code, address=HOME)
    await refused(poll(devices, started), Code.PERMISSION_DENIED, "DEVICE_DENIED")
    await refused(approve(devices, ada, started), Code.NOT_FOUND, "USER_CODE_INVALID")
    other = await start(devices)
    await approve(devices, ada, other)
    late = devices.deny(caller=ada.caller, user_code=other.user_code, address=HOME)
    await refused(late, Code.NOT_FOUND, "USER_CODE_INVALID")


async def test_a_code_is_used_up(auth: AuthRoom, devices: DeviceService, clock: FakeClock) -> None:
    """The device code opens one session; the user code is free for another login then."""
    ada = await somebody(auth)
    started = await start(devices)
    await approve(devices, ada, started)
    await poll(devices, started)
    clock.advance(minutes=1)
    await refused(poll(devices, started), Code.UNAUTHENTICATED, "DEVICE_CODE_INVALID")
    again = await approve(devices, ada, started)
    assert again.claimed_at is not None
    bob = await somebody(auth)
    await refused(approve(devices, bob, started), Code.NOT_FOUND, "USER_CODE_INVALID")


async def test_a_taken_spelling_is_tried_again(
    devices: DeviceService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two logins never show one code; were every spelling taken, the call may be repeated."""
    numbers = iter([7, 7, 8, *[7] * 5])
    monkeypatch.setattr(device_service.secrets, "randbelow", lambda _: next(numbers))
    assert (await start(devices)).user_code == spell_user_code(7)
    assert (await start(devices)).user_code == spell_user_code(8)
    await refused(start(devices), Code.ABORTED, "CONFLICT")


async def test_the_device_gets_no_more_than_its_approver_proved(
    auth: AuthRoom, devices: DeviceService, clock: FakeClock
) -> None:
    """A device approved in an old session is not freshly authenticated, nor more strongly."""
    ada = await somebody(auth, Means(("pwd", "otp"), Acr.AAL2))
    then = int(clock.now().timestamp())
    clock.advance(minutes=5)
    started = await start(devices)
    await approve(devices, ada, started)
    clock.advance(minutes=1)
    tokens, _ = await poll(devices, started)
    refreshed = await auth.sessions.refresh(tokens.refresh_token)
    for token in (tokens.access_token, refreshed.access_token):
        claims = jwt.decode(token, options={"verify_signature": False})
        assert (claims["acr"], claims["amr"], claims["auth_time"]) == ("aal2", ["pwd", "otp"], then)


async def test_an_older_token_vouches_for_what_it_says(
    auth: AuthRoom, devices: DeviceService, owner: Connection
) -> None:
    """A token from before its session's second factor does not hand that factor on."""
    ada = await somebody(auth)
    await owner.execute("UPDATE sessions SET acr = 'aal2', authenticated_at = created_at")
    started = await start(devices)
    login = await approve(devices, ada, started)
    assert login.approval is not None
    assert login.approval.acr is Acr.AAL1


async def test_who_has_a_second_factor_approves_with_it(
    auth: AuthRoom, devices: DeviceService, owner: Connection, clock: FakeClock
) -> None:
    """STEP_UP_REQUIRED for one factor, whatever the code; enabled later, it voids the approval."""
    ada, bob = await somebody(auth), await somebody(auth)
    started = await start(devices)
    enable = "UPDATE users SET mfa_enabled_at = $2 WHERE id = $1"
    await owner.execute(enable, ada.user.id, clock.now())
    for code in (started.user_code, WRONG):
        weak = devices.approve(caller=ada.caller, user_code=code, address=HOME)
        refusal = await refused(weak, Code.UNAUTHENTICATED, "STEP_UP_REQUIRED")
        assert refusal.metadata["acr_values"] == "aal2"
    strong = replace(ada, caller=replace(ada.caller, acr=Acr.AAL2))
    await approve(devices, strong, started)
    await poll(devices, started)

    before = await start(devices)
    await approve(devices, bob, before)
    await owner.execute(enable, bob.user.id, clock.now())
    await refused(poll(devices, before), Code.PERMISSION_DENIED, "DEVICE_DENIED")


async def test_who_may_not_log_in_lets_no_device_in(
    auth: AuthRoom, devices: DeviceService, owner: Connection, clock: FakeClock
) -> None:
    """An approver banned or erased before the claim: DEVICE_DENIED and no session."""
    ada, bob = await somebody(auth), await somebody(auth)
    by_ada, by_bob = await start(devices), await start(devices)
    await approve(devices, ada, by_ada)
    await approve(devices, bob, by_bob)
    await ban(owner, ada.user, clock)
    await owner.execute(
        "UPDATE users SET erased_at = $2, deletion_requested_at = $2, password_hash = NULL"
        " WHERE id = $1",
        bob.user.id,
        clock.now(),
    )
    for started in (by_ada, by_bob):
        await refused(poll(devices, started), Code.PERMISSION_DENIED, "DEVICE_DENIED")
    assert await owner.fetchval("SELECT count(*) FROM sessions WHERE device = 'Editor'") == 0


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (EndReason.PASSWORD_RESET, "DEVICE_DENIED"),
        (EndReason.REPLAY, "DEVICE_DENIED"),
        (EndReason.REVOKED, "DEVICE_DENIED"),
        (EndReason.LOGOUT, ""),
    ],
)
async def test_an_approval_ends_with_what_took_its_session_away(
    auth: AuthRoom, devices: DeviceService, reason: EndReason, expected: str
) -> None:
    """Whoever lost a session to a reset or a thief keeps no approval; who logged out meant it."""
    ada = await somebody(auth)
    started = await start(devices)
    await approve(devices, ada, started)
    now = auth.room.clock.now()
    async with auth.room.database.transaction() as conn:
        await store_sessions.end_session(conn, ada.tokens.session.id, reason=reason, by="", now=now)
    assert await reason_of(poll(devices, started)) == expected
    other = await start(devices)
    await refused(approve(devices, ada, other), Code.UNAUTHENTICATED, "SESSION_ENDED")


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


async def test_count_before_start_would_let_more_wait(
    auth: AuthRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the lock, starts that come together all find room."""

    async def no_lock(conn: Connection, address: str) -> None:
        await asyncio.sleep(0.05)

    monkeypatch.setattr(store_devices, "lock_address", no_lock)
    assert (await fifty_starts(auth, HOME)).count("") > 20
