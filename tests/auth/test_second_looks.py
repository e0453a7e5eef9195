"""What is looked at again after a wait, and what stays although the caller is refused."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import pytest

from chassis.callers import Caller
from chassis.limits import Limit
from chassis.postgres import Connection, Database
from services.auth.domain.sessions import STEP_UP_AGE
from services.auth.domain.users import Role, User
from services.auth.service import proofs
from services.auth.service.admin import AdminService
from services.auth.service.attempts import Attempts
from services.auth.service.lifecycle import LifecycleService
from services.auth.service.passwords import PasswordService
from services.auth.service.proofs import Proof, ProofKind
from services.auth.service.room import Guesses
from services.auth.service.rotation import KeyService
from services.auth.service.session_list import SessionListService
from services.auth.store import users as store_users
from tests.auth.factors import Factors, Somebody, open_factors
from tests.chassis.waiting import until
from tests.factories import MEANS, make_user, open_auth, reason_of
from tests.fakes import FakeClock
from tests.running import PASSWORD

NEW = "a brand new passphrase"
HOME = "192.0.2.1"
TOTP, RECOVERY = ProofKind.TOTP, ProofKind.RECOVERY
# Long enough that no slow machine sits it out.
STRICT = Limit("strict", free=3, first=600.0, longest=600.0)
LOOSE = Limit("loose", free=1_000_000, first=1.0, longest=1.0)


async def end_session(factors: Factors, caller: Caller, user: User) -> None:
    """Ends a session of somebody else's."""
    auth = factors.auth
    async with auth.room.database.transaction() as conn:
        tokens, _ = await auth.sessions.sign_in(conn, user.id, MEANS, auth.room.clock.now())
    await SessionListService(auth.room).revoke(
        user.id, tokens.session.id, caller=caller, why="test"
    )


def admin(factors: Factors) -> AdminService:
    return AdminService(factors.auth.room, factors.auth.sessions)


# What an administrator asks for while it is being demoted.
Asked: TypeAlias = Callable[[Factors, Caller, User], Awaitable[Any]]
ASKED: dict[str, Asked] = {
    "SetRole": lambda factors, caller, user: factors.auth.accounts.set_role(
        user_id=user.id, role=Role.PRO, reason="test", actor=caller, key=None
    ),
    "ResetMfa": lambda factors, caller, user: factors.mfa.reset(
        caller, user_id=user.id, reason="test", key=None
    ),
    "BanUser": lambda factors, caller, user: admin(factors).ban_user(
        user_id=user.id, reason="test", until=None, caller=caller, key=None
    ),
    "UnbanUser": lambda factors, caller, user: admin(factors).unban_user(
        user_id=user.id, reason="test", caller=caller, key=None
    ),
    "RevokeUserSessions": lambda factors, caller, user: admin(factors).revoke_sessions(
        user_id=user.id, reason="test", caller=caller, key=None
    ),
    "RevokeSession": end_session,
    "RotateSigningKeys": lambda factors, caller, _: KeyService(factors.auth.room).rotate(
        reason="test", caller=caller, key=None
    ),
    "ExportMyData": lambda factors, caller, user: LifecycleService(factors.auth.room).export(
        user.id, caller=caller
    ),
}


async def waits(owner: Connection) -> bool:
    """Tells whether a statement waits for a lock."""
    return bool(await owner.fetchval("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"))


async def once_it_waits(owner: Connection, call: Awaitable[Any]) -> asyncio.Task[str]:
    """Starts a call; returns it once it waits for a lock, or needs none."""
    asked = asyncio.create_task(reason_of(call))

    async def there() -> bool:
        return asked.done() or await waits(owner)

    await until(there)
    return asked


async def demoted_meanwhile(
    factors: Factors, owner: Connection, clock: FakeClock, asked: Asked
) -> str:
    """An administrator asks while its demotion is being written; returns why it is refused."""
    boss, target = await factors.boss(), await make_user(owner, clock)
    await make_user(owner, clock, role=Role.ADMIN)
    async with factors.auth.room.database.transaction() as conn:
        await conn.execute("UPDATE users SET role = 'free' WHERE id = $1", boss.user.id)
        call = await once_it_waits(owner, asked(factors, boss.caller, target))
    return await call


@pytest.mark.parametrize("name", ASKED)
async def test_who_is_no_administrator_any_more_acts_as_nobody(
    factors: Factors, owner: Connection, clock: FakeClock, name: str
) -> None:
    """Demoted before, banned before, or demoted while the call waits: ACCESS_DENIED."""
    boss, target = await factors.boss(), await make_user(owner, clock)
    await make_user(owner, clock, role=Role.ADMIN)
    for change in (
        "role = 'pro'",
        "role = 'admin', banned_at = now(), ban_reason = 'test'",
    ):
        await owner.execute(f"UPDATE users SET {change} WHERE id = $1", boss.user.id)  # noqa: S608
        assert await reason_of(ASKED[name](factors, boss.caller, target)) == "ACCESS_DENIED"
    assert await demoted_meanwhile(factors, owner, clock, ASKED[name]) == "ACCESS_DENIED"
    roles = await owner.fetch("SELECT role FROM users WHERE id = $1", target.id)
    assert [row["role"] for row in roles] == ["free"]


@pytest.mark.parametrize("name", ASKED)
async def test_an_administrator_proves_again_who_it_is(
    factors: Factors, owner: Connection, clock: FakeClock, name: str
) -> None:
    """Past ten minutes it is STEP_UP_REQUIRED; with a fresh proof it is done."""
    boss, target = await factors.boss(), await make_user(owner, clock)
    stale = replace(boss.caller, auth_time=clock.now() - STEP_UP_AGE - timedelta(seconds=1))
    assert await reason_of(ASKED[name](factors, stale, target)) == "STEP_UP_REQUIRED"
    assert await reason_of(ASKED[name](factors, boss.caller, target)) == ""


@pytest.mark.parametrize("name", ASKED)
async def test_without_the_lock_a_demoted_one_would_act(
    factors: Factors,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Negative control: who reads the administrators instead of locking them lets one act."""

    async def read(conn: Connection, _: datetime) -> list[UUID]:
        rows = await conn.fetch("SELECT id FROM users WHERE role = 'admin' ORDER BY id")
        return [row["id"] for row in rows]

    monkeypatch.setattr(store_users, "lock_admins", read)
    assert await demoted_meanwhile(factors, owner, clock, ASKED[name]) == ""


async def test_a_password_beside_a_second_factor_needs_both(
    factors: Factors, clock: FakeClock
) -> None:
    """With a session of one factor, or an old one of two, it is STEP_UP_REQUIRED."""
    ada = await factors.somebody()
    await ada.enrol()

    async def change() -> str:
        passwords = PasswordService(factors.auth.room)
        return await reason_of(
            passwords.change(caller=ada.caller, current=PASSWORD, new=NEW, address=HOME, key=None)
        )

    assert await change() == "STEP_UP_REQUIRED"
    await ada.sign_in()
    clock.advance(seconds=STEP_UP_AGE.total_seconds(), microseconds=1)
    assert await change() == "STEP_UP_REQUIRED"
    tokens = await factors.proofs.step_up(ada.caller, Proof(TOTP, ada.code()), HOME)
    ada.caller = await factors.auth.verifier.verify(tokens.access_token)
    assert await change() == ""


@pytest.fixture
async def strict(auth_database: Database, clock: FakeClock) -> AsyncIterator[Factors]:
    """Second factors where few wrong codes hold an account off for long."""
    guesses = Guesses(pair=STRICT, account=LOOSE, address=LOOSE)
    async with open_auth(auth_database, clock, guesses=guesses) as auth:
        yield open_factors(auth, clock)


async def guessed_meanwhile(strict: Factors, owner: Connection, ada: Somebody, call: Any) -> str:
    """A right proof waits for the account while wrong ones use the limit up; returns its reason."""
    attempts = Attempts(strict.auth.room)
    async with strict.auth.room.database.transaction() as conn:
        await store_users.lock_user(conn, ada.user.id)
        asked = await once_it_waits(owner, call)
        for _ in range(STRICT.free + 1):
            await attempts.failed(f"mfa:{ada.user.id}", HOME)
    return await asked


async def codes_left(ada: Somebody) -> int:
    return (await ada.factors.mfa.list_factors(ada.user.id, after=None, limit=5))[2]


async def test_a_sign_in_that_comes_too_late_uses_its_proof_up(
    strict: Factors, owner: Connection
) -> None:
    """TOO_MANY_ATTEMPTS opens nothing, but the try is counted and the code is used."""
    ada = await strict.somebody()
    await ada.enrol()
    call = strict.complete(await ada.challenge(), RECOVERY, ada.codes[0])
    assert await guessed_meanwhile(strict, owner, ada, call) == "TOO_MANY_ATTEMPTS"
    row = await owner.fetchrow("SELECT tries, used_at FROM mfa_challenges")
    assert tuple(row) == (1, None)
    assert await codes_left(ada) == 9
    assert await owner.fetchval("SELECT count(*) FROM sessions") == 1
    strict.auth.room.limits._counts.clear()
    again = ada.second_step(RECOVERY, ada.codes[0])
    assert await reason_of(again) == "MFA_CODE_INVALID"


async def test_a_step_up_that_comes_too_late_uses_its_proof_up(
    strict: Factors, owner: Connection, clock: FakeClock
) -> None:
    """The session is as it was, and the code has been used."""
    ada = await strict.somebody()
    await ada.enrol()
    proved = await owner.fetchval("SELECT authenticated_at FROM sessions")
    clock.advance(minutes=1)
    call = strict.proofs.step_up(ada.caller, Proof(RECOVERY, ada.codes[0]), HOME)
    assert await guessed_meanwhile(strict, owner, ada, call) == "TOO_MANY_ATTEMPTS"
    assert await owner.fetchval("SELECT authenticated_at FROM sessions") == proved
    assert await codes_left(ada) == 9


async def test_a_refusal_inside_would_give_the_proof_back(
    strict: Factors, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: raised in the transaction, the refusal undoes that the code was used."""

    async def raising(guess: Any) -> bool:
        await guess.attempts.succeeded(guess.account, guess.address)
        return True

    monkeypatch.setattr(getattr(proofs, "_Guess"), "in_time", raising)  # noqa: B009
    ada = await strict.somebody()
    await ada.enrol()
    call = strict.complete(await ada.challenge(), RECOVERY, ada.codes[0])
    assert await guessed_meanwhile(strict, owner, ada, call) == "TOO_MANY_ATTEMPTS"
    assert await codes_left(ada) == 10
