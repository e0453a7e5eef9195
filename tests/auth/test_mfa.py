"""Authenticator apps and recovery codes, as use cases over a database of the test's own."""

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pyotp
import pytest
from cryptography.exceptions import InvalidTag

from chassis.callers import Caller, Kind
from chassis.errors import Refusal
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from services.auth.domain.mfa import CHALLENGE_LIFE
from services.auth.service.proofs import ProofKind
from services.auth.store import mfa as store
from services.auth.store import users as store_users
from services.auth.store.lifecycle import EXPIRING
from services.auth.worker import sweep
from tests.auth.factors import Factors, Somebody, opened
from tests.factories import AuthRoom, at_once, log_in, reason_of, sooner_or_later
from tests.fakes import FakeClock

TOTP, RECOVERY = ProofKind.TOTP, ProofKind.RECOVERY


async def test_the_first_factor_switches_the_second_step_on(
    factors: Factors, owner: Connection, clock: FakeClock
) -> None:
    """It gives ten codes and a mail; nothing secret rests in a table; the session used it."""
    ada = await factors.somebody()
    enrolled = await factors.mfa.enrol_totp(ada.caller)
    ada.secret = enrolled.secret
    assert len(enrolled.secret) == 32
    assert enrolled.uri.startswith("otpauth://totp/Finity:")
    assert (await factors.auth.accounts.get_user(ada.user.id)).mfa_enabled_at is None
    codes = await factors.mfa.confirm_totp(ada.caller, ada.code(), None)
    assert len(set(codes)) == 10
    user = await factors.auth.accounts.get_user(ada.user.id)
    assert user.mfa_enabled_at == clock.now()
    session = await owner.fetchrow("SELECT amr, acr FROM sessions")
    assert (session["amr"], session["acr"]) == (["pwd", "otp"], "aal2")
    told = await owner.fetch(
        "SELECT payload->>'to' AS address FROM auth_outbox"
        " WHERE payload->>'template' = 'mfa_enabled'"
    )
    assert [row["address"] for row in told] == [user.email]
    rows = await owner.fetch(
        "SELECT sealed_secret::text AS kept FROM mfa_totp"
        " UNION ALL SELECT digest::text FROM mfa_recovery_codes"
        " UNION ALL SELECT payload::text FROM auth_outbox"
    )
    kept = "".join(row["kept"] for row in rows)
    secret = pyotp.TOTP(ada.secret).byte_secret()
    for word in (ada.secret, secret.hex(), *codes, *(code.replace("-", "") for code in codes)):
        assert word not in kept


async def test_a_sealed_secret_is_its_user_s(
    factors: Factors, owner: Connection, clock: FakeClock
) -> None:
    """Copied to another row it cannot be opened."""
    ada, bob = await factors.somebody(), await factors.somebody()
    await ada.enrol()
    await bob.enrol()
    await owner.execute(
        "UPDATE mfa_totp SET sealed_secret ="
        " (SELECT sealed_secret FROM mfa_totp WHERE user_id = $1)",
        ada.user.id,
    )
    async with factors.auth.room.database.connection() as conn:
        with pytest.raises(InvalidTag):
            await factors.mfa.take_totp(conn, bob.user.id, "000000", clock.now())


async def test_an_enrolment_is_refused_by_reason(factors: Factors, clock: FakeClock) -> None:
    """Nothing waits, a wrong code, too late, and there is one already."""
    ada = await factors.somebody()

    def confirm(code: str) -> Any:
        return factors.mfa.confirm_totp(ada.caller, code, None)

    assert await reason_of(confirm("000000")) == "MFA_NOT_ENROLLED"
    assert await reason_of(regenerate(ada)) == "MFA_NOT_ENROLLED"
    ada.secret = (await factors.mfa.enrol_totp(ada.caller)).secret
    assert await reason_of(confirm(ada.code(5))) == "MFA_CODE_INVALID"
    clock.advance(minutes=9)
    first, ada.secret = ada.code(), (await factors.mfa.enrol_totp(ada.caller)).secret
    assert await reason_of(confirm(first)) == "MFA_CODE_INVALID"
    await confirm(ada.code())
    await ada.sign_in()
    assert await reason_of(factors.mfa.enrol_totp(ada.caller)) == "TOTP_ALREADY_ENROLLED"


async def test_an_enrolment_ends(factors: Factors, clock: FakeClock) -> None:
    """Fifteen minutes later its code confirms nothing."""
    ada = await factors.somebody()
    ada.secret = (await factors.mfa.enrol_totp(ada.caller)).secret
    clock.advance(minutes=15)
    tokens, _ = await log_in(factors.auth, ada.user.email)
    ada.caller = await factors.auth.verifier.verify(tokens.access_token)
    confirm = factors.mfa.confirm_totp(ada.caller, ada.code(), None)
    assert await reason_of(confirm) == "MFA_NOT_ENROLLED"


async def test_a_confirmation_with_the_key_again_gives_the_same_codes(factors: Factors) -> None:
    """A lost answer does not lose the recovery codes."""
    ada = await factors.somebody()
    ada.secret = (await factors.mfa.enrol_totp(ada.caller)).secret
    key = Key(ada.caller.key, "ConfirmTotp", "k", b"same")
    answers = await at_once(20, lambda _: factors.mfa.confirm_totp(ada.caller, ada.code(), key))
    assert answers == [answers[0]] * 20
    assert len(answers[0]) == 10


async def fifty_confirm(ada: Somebody) -> list[Any]:
    """Fifty calls confirm one enrolment at once, without a key."""
    ada.secret = (await ada.factors.mfa.enrol_totp(ada.caller)).secret
    return await at_once(50, lambda _: ada.factors.mfa.confirm_totp(ada.caller, ada.code(), None))


@pytest.mark.usefixtures("every_connection")
async def test_an_enrolment_is_confirmed_once(factors: Factors, owner: Connection) -> None:
    """Of fifty confirmations one gives recovery codes, and those are the ones that are kept."""
    ada = await factors.somebody()
    answers = await fifty_confirm(ada)
    assert opened(answers) == 1
    assert await owner.fetchval("SELECT count(*) FROM mfa_recovery_codes") == 10
    mails = await owner.fetchval(
        "SELECT count(*) FROM auth_outbox WHERE payload->>'template' = 'mfa_enabled'"
    )
    assert mails == 1
    (codes,) = [answer for answer in answers if not isinstance(answer, Refusal)]
    await ada.second_step(RECOVERY, codes[0])


async def test_without_lock_and_condition_it_would_be_confirmed_again(
    factors: Factors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: looked at without a lock, written without a condition, it happens often."""

    async def write_only(conn: Connection, user_id: UUID, *, step: int, now: datetime) -> bool:
        await conn.execute(
            "UPDATE mfa_totp SET confirmed_at = $3, last_step = $2 WHERE user_id = $1",
            user_id,
            step,
            now,
        )
        return True

    async def again() -> bool:
        return opened(await fifty_confirm(await factors.somebody())) > 1

    monkeypatch.setattr(store_users, "lock_user", store_users.get_user)
    monkeypatch.setattr(store, "confirm_totp", write_only)
    assert await sooner_or_later(again, rounds=10)


async def regenerate(ada: Somebody) -> list[str]:
    return list(await ada.factors.mfa.regenerate_recovery_codes(ada.caller, None))


async def test_new_recovery_codes_replace_the_old(factors: Factors, owner: Connection) -> None:
    """Those of before work no more; fifty calls at once still leave ten."""
    ada = await factors.somebody()
    await ada.enrol()
    await ada.sign_in()
    answers = await at_once(50, lambda _: regenerate(ada))
    assert opened(answers) > 0
    assert await owner.fetchval("SELECT count(*) FROM mfa_recovery_codes") == 10
    codes = await regenerate(ada)
    old = ada.second_step(RECOVERY, ada.codes[0])
    assert await reason_of(old) == "MFA_CODE_INVALID"
    await ada.second_step(RECOVERY, codes[0])


async def test_without_the_lock_codes_would_pile_up(
    factors: Factors, owner: Connection, clock: FakeClock
) -> None:
    """Negative control: two that replace codes without the user's lock leave twenty."""
    ada = await factors.somebody()
    database, both = factors.auth.room.database, asyncio.Barrier(2)

    async def replace(_: int) -> None:
        async with database.transaction() as conn:
            await conn.execute("SELECT 1 FROM mfa_recovery_codes")
            await both.wait()
            codes = [(uuid7(clock.now()), uuid4().bytes) for _ in range(10)]
            await store.replace_recovery_codes(conn, ada.user.id, codes, clock.now())
            await both.wait()

    await at_once(2, replace)
    assert await owner.fetchval("SELECT count(*) FROM mfa_recovery_codes") == 20


async def test_the_last_factor_switches_the_second_step_off(
    factors: Factors, owner: Connection
) -> None:
    """Its recovery codes go, a mail says so, the password is enough; again changes nothing."""
    ada = await factors.somebody()
    await ada.enrol()
    assert await reason_of(factors.mfa.disable_totp(ada.caller)) == "STEP_UP_REQUIRED"
    await ada.sign_in()
    await factors.mfa.disable_totp(ada.caller)
    await factors.mfa.disable_totp(ada.caller)
    assert (await factors.auth.accounts.get_user(ada.user.id)).mfa_enabled_at is None
    assert await owner.fetchval("SELECT count(*) FROM mfa_recovery_codes") == 0
    mails = await owner.fetch(
        "SELECT payload->>'template' AS name FROM auth_outbox"
        " WHERE payload->>'template' LIKE 'mfa_%' ORDER BY id"
    )
    assert [row["name"] for row in mails] == ["mfa_enabled", "mfa_disabled"]
    await log_in(factors.auth, ada.user.email)


async def test_a_reset_removes_everything_and_is_logged(
    factors: Factors, owner: Connection
) -> None:
    """Factors, sessions and tokens go in the transaction that writes the admin log."""
    ada, boss = await factors.somebody(), await factors.boss()
    await ada.enrol()
    challenge = await ada.challenge()
    factors.auth.announced.clear()
    key = Key(boss.caller.key, "ResetMfa", "k", b"same")
    for _ in range(2):
        user = await factors.mfa.reset(
            boss.caller, user_id=ada.user.id, reason="lost phone", key=key
        )
        assert (user.mfa_enabled_at, user.token_version) == (None, 2)
    for table in ("mfa_totp", "mfa_recovery_codes"):
        assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 0  # noqa: S608
    row = await owner.fetchrow(
        "SELECT l.actor, l.action, l.target_user_id, l.details::text,"
        " u.xmin::text = l.xmin::text AND s.xmin::text = l.xmin::text, s.end_reason, s.ended_by"
        " FROM admin_logs l JOIN users u ON u.id = l.target_user_id"
        " JOIN sessions s ON s.user_id = u.id WHERE l.action = 'reset_mfa'"
    )
    assert tuple(row) == (
        boss.caller.key,
        "reset_mfa",
        ada.user.id,
        '{"reason": "lost phone"}',
        True,
        "mfa_changed",
        boss.caller.key,
    )
    (revoked,) = factors.auth.announced
    assert list(revoked.sessions) == [ada.caller.session_id]
    assert list(revoked.versions) == [(ada.user.id, 2)]
    late = factors.complete(challenge, RECOVERY, ada.codes[0])
    assert await reason_of(late) == "MFA_CHALLENGE_INVALID"
    await log_in(factors.auth, ada.user.email)


async def test_nobody_has_no_factors(factors: Factors, clock: FakeClock) -> None:
    """Who does not exist is USER_NOT_FOUND, to list, to reset, and as the caller."""
    boss = await factors.boss()
    listed = factors.mfa.list_factors(uuid4(), after=None, limit=5)
    assert await reason_of(listed) == "USER_NOT_FOUND"
    reset = factors.mfa.reset(boss.caller, user_id=uuid4(), reason="x", key=None)
    assert await reason_of(reset) == "USER_NOT_FOUND"
    ghost = Caller(Kind.USER, user_id=uuid4(), session_id=uuid4(), auth_time=clock.now())
    assert await reason_of(factors.mfa.enrol_totp(ghost)) == "USER_NOT_FOUND"


async def test_the_sweeper_deletes_challenges_that_are_over(
    auth: AuthRoom, factors: Factors, auth_database: Database, clock: FakeClock
) -> None:
    """Used or not, they stay until no replica's clock could still take them, and go then."""
    ada = await factors.somebody()
    await ada.enrol()
    await ada.second_step(RECOVERY, ada.codes[0])
    await factors.passkeys.start_assertion()
    # A held-back sign-in says when it ends in whole seconds.
    kept = CHALLENGE_LIFE + EXPIRING["mfa_challenges"]
    clock.advance(seconds=kept.total_seconds() - 1)
    assert await sweep(auth_database, clock) == 0
    clock.advance(seconds=1, microseconds=1)
    assert await sweep(auth_database, clock) == 2
