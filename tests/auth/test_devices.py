"""Logins of plugins and devices: the flow, its refusals, its races and who stands for them."""

from dataclasses import replace

import jwt
import pytest

from chassis.errors import Code, Refusal
from chassis.postgres import Connection
from services.auth.domain.devices import (
    ALPHABET,
    LIFETIME,
    USER_CODES,
    digest_user_code,
    spell_user_code,
)
from services.auth.domain.sessions import Acr, EndReason, Means, digest
from services.auth.domain.users import User
from services.auth.service.devices import DeviceService
from services.auth.service.step_up import require_fresh
from services.auth.store import sessions as store_sessions
from tests.auth.devices import HOME, approve, poll, refused, somebody, start
from tests.factories import AuthRoom, reason_of
from tests.fakes import FakeClock

WRONG = "BBBB-BBBB"


@pytest.fixture
def devices(auth: AuthRoom) -> DeviceService:
    return DeviceService(auth.room, auth.sessions)


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


async def test_an_old_proof_approves_nothing(
    auth: AuthRoom, devices: DeviceService, owner: Connection, clock: FakeClock
) -> None:
    """Past ten minutes it is STEP_UP_REQUIRED, also without a second factor, for any code."""
    ada = await somebody(auth)
    clock.advance(minutes=10, microseconds=1)
    started = await start(devices)
    await refused(approve(devices, ada, started), Code.UNAUTHENTICATED, "STEP_UP_REQUIRED")
    unknown = devices.approve(caller=ada.caller, user_code=WRONG, address=HOME)
    await refused(unknown, Code.UNAUTHENTICATED, "STEP_UP_REQUIRED")
    assert await reason_of(poll(devices, started)) == "AUTHORIZATION_PENDING"
    assert await owner.fetchval("SELECT approved_at FROM chrome_auth_links") is None
    await approve(devices, await somebody(auth), started)


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
    ada = await somebody(auth)
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
    monkeypatch.setattr("secrets.randbelow", lambda _: next(numbers))
    assert (await start(devices)).user_code == spell_user_code(7)
    assert (await start(devices)).user_code == spell_user_code(8)
    await refused(start(devices), Code.ABORTED, "CONFLICT")


async def test_the_device_gets_no_more_than_its_approver_proved(
    auth: AuthRoom, devices: DeviceService, clock: FakeClock
) -> None:
    """A device is as strongly authenticated as its approver, and as long ago."""
    ada = await somebody(auth, Means(("pwd", "otp"), Acr.AAL2))
    then = int(clock.now().timestamp())
    clock.advance(minutes=9)
    started = await start(devices)
    await approve(devices, ada, started)
    clock.advance(minutes=5)
    tokens, _ = await poll(devices, started)
    refreshed = await auth.sessions.refresh(tokens.refresh_token)
    for token in (tokens.access_token, refreshed.access_token):
        claims = jwt.decode(token, options={"verify_signature": False})
        assert (claims["acr"], claims["amr"], claims["auth_time"]) == ("aal2", ["pwd", "otp"], then)


async def test_an_approval_is_no_fresh_proof_on_the_device(
    auth: AuthRoom, devices: DeviceService, clock: FakeClock
) -> None:
    """Approved just after a sign-in, the device must step up first; its approver need not."""
    ada = await somebody(auth, Means(("pwd", "otp"), Acr.AAL2))
    started = await start(devices)
    await approve(devices, ada, started)
    tokens, user = await poll(devices, started)
    device = await auth.verifier.verify(tokens.access_token)
    require_fresh(ada.caller, user, clock.now())
    with pytest.raises(Refusal) as caught:
        require_fresh(device, user, clock.now())
    assert caught.value.reason == "STEP_UP_REQUIRED"


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
        "UPDATE users SET erased_at = $2, deletion_requested_at = $2, erasure_due_at = $2,"
        " password_hash = NULL WHERE id = $1",
        bob.user.id,
        clock.now(),
    )
    for started in (by_ada, by_bob):
        await refused(poll(devices, started), Code.PERMISSION_DENIED, "DEVICE_DENIED")
    assert await owner.fetchval("SELECT count(*) FROM sessions WHERE device = 'Editor'") == 0


@pytest.mark.parametrize("why", ["banned", "mfa_enabled", "withdrawn"])
async def test_what_was_denied_at_the_claim_stays_denied(
    auth: AuthRoom, devices: DeviceService, owner: Connection, why: str
) -> None:
    """The code is used up and no session opened, nor is one when the reason is gone again."""
    ada = await somebody(auth)
    started = await start(devices)
    await approve(devices, ada, started)
    spoil, mend = {
        "banned": (
            "UPDATE users SET banned_at = now(), ban_reason = 'test'",
            "UPDATE users SET banned_at = NULL, ban_reason = NULL",
        ),
        "mfa_enabled": (
            "UPDATE users SET mfa_enabled_at = now()",
            "UPDATE users SET mfa_enabled_at = NULL",
        ),
        "withdrawn": (
            "UPDATE sessions SET ended_at = now(), end_reason = 'revoked_by_user'",
            "UPDATE sessions SET ended_at = NULL, end_reason = NULL",
        ),
    }[why]
    await owner.execute("UPDATE users SET last_login = NULL")
    await owner.execute(spoil)
    await refused(poll(devices, started), Code.PERMISSION_DENIED, "DEVICE_DENIED")
    assert await owner.fetchval("SELECT last_login FROM users") is None
    assert await owner.fetchval("SELECT claimed_at FROM chrome_auth_links") is not None
    await owner.execute(mend)
    await refused(poll(devices, started), Code.UNAUTHENTICATED, "DEVICE_CODE_INVALID")
    assert await owner.fetchval("SELECT count(*) FROM sessions") == 1


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
