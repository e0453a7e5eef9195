"""Signing in in two steps and stepping up, as use cases over a database of the test's own."""

from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from chassis.errors import Code, Refusal
from chassis.idempotency import Key
from chassis.postgres import Connection, Database
from services.auth.config import Settings
from services.auth.domain.users import Role
from services.auth.errors import MfaCodeInvalid, MfaRequired
from services.auth.service.proofs import Proof, ProofKind
from services.auth.service.room import SECOND_FACTOR
from services.auth.store import mfa as store
from tests.auth.factors import Factors, Somebody, open_factors, opened
from tests.authenticator import Authenticator
from tests.factories import MEANS, SERVICE, an_address, at_once, log_in, open_auth, reason_of
from tests.fakes import FakeClock
from tests.running import PASSWORD

TOTP, RECOVERY = ProofKind.TOTP, ProofKind.RECOVERY


async def sessions_of(owner: Connection, somebody: Somebody) -> int:
    """Counts all sessions but the first, with which the factor was enrolled."""
    count = await owner.fetchval(
        "SELECT count(*) FROM sessions WHERE user_id = $1", somebody.user.id
    )
    return int(count) - 1


async def test_a_login_is_held_back(factors: Factors, owner: Connection, clock: FakeClock) -> None:
    """It leaves no session, no stamp and no idempotency key; only the right password gets there."""
    ada = await factors.somebody()
    stamped = (await factors.auth.accounts.get_user(ada.user.id)).last_login
    await ada.enrol()
    clock.advance(minutes=1)
    key = Key("public", "Login", "k", b"same")
    with pytest.raises(MfaRequired) as held:
        await log_in(factors.auth, ada.user.email, key=key)
    assert (held.value.code, held.value.reason) == (Code.UNAUTHENTICATED, "MFA_REQUIRED")
    assert held.value.metadata["methods"] == "totp,recovery_code"
    assert await sessions_of(owner, ada) == 0
    assert (await factors.auth.accounts.get_user(ada.user.id)).last_login == stamped
    assert await owner.fetchval("SELECT count(*) FROM auth_idempotency_keys") == 0
    refusals = []
    for email, password in ((ada.user.email, "wrong horse"), (an_address(), PASSWORD)):
        with pytest.raises(Refusal) as refused:
            await factors.auth.sessions.login(email=email, password=password, means=MEANS, key=None)
        refusals.append((refused.value.reason, refused.value.message, refused.value.metadata))
    assert refusals[0] == refusals[1]
    tokens, user = await ada.second_step(TOTP, ada.code())
    assert (tokens.session.amr, tokens.session.acr) == (("pwd", "otp"), "aal2")
    assert user.last_login == clock.now()


async def test_a_held_back_login_renews_an_outdated_hash(
    factors: Factors, auth_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """What holds the session back does not keep the old hash."""
    ada = await factors.somebody()
    await ada.enrol()
    async with open_auth(auth_database, clock, time_cost=2) as stricter:
        ada.factors = open_factors(stricter, clock)
        await ada.challenge()
    assert ",t=2," in await owner.fetchval("SELECT password_hash FROM users")


async def fifty_with_one_code(ada: Somebody, kind: ProofKind, text: str) -> list[Any]:
    """Fifty held-back sign-ins present the same code at once."""
    challenges = await at_once(50, lambda _: ada.challenge())
    return await at_once(50, lambda index: ada.factors.complete(challenges[index], kind, text))


async def test_a_code_works_once(factors: Factors, owner: Connection, clock: FakeClock) -> None:
    """Of fifty sign-ins with one code of the app one opens a session, in every round."""
    ada = await factors.somebody()
    await ada.enrol()
    for number in range(1, 4):
        clock.advance(minutes=20)
        answers = await fifty_with_one_code(ada, TOTP, ada.code())
        assert opened(answers) == 1
        assert await sessions_of(owner, ada) == number
        factors.auth.room.limits._counts.clear()


async def test_without_the_step_a_code_would_work_fifty_times(
    factors: Factors, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a code that is right and not taken lets everybody in."""

    async def forget(*_: object, **__: object) -> bool:
        return True

    ada = await factors.somebody()
    await ada.enrol()
    clock.advance(seconds=30)
    monkeypatch.setattr(store, "take_totp_step", forget)
    assert opened(await fifty_with_one_code(ada, TOTP, ada.code())) > 1


async def test_codes_go_forward_only(factors: Factors, clock: FakeClock) -> None:
    """One step early or late is taken; after a later one an earlier one is not."""
    ada = await factors.somebody()
    await ada.enrol()
    assert await reason_of(ada.second_step(TOTP, ada.code())) == "MFA_CODE_INVALID"
    clock.advance(minutes=5)
    assert await reason_of(ada.second_step(TOTP, ada.code(2))) == "MFA_CODE_INVALID"
    assert await reason_of(ada.second_step(TOTP, ada.code(-2))) == "MFA_CODE_INVALID"
    await ada.second_step(TOTP, ada.code(-1))
    await ada.second_step(TOTP, ada.code(1))
    assert await reason_of(ada.second_step(TOTP, ada.code())) == "MFA_CODE_INVALID"


async def test_a_recovery_code_works_once(factors: Factors, owner: Connection) -> None:
    """Of fifty sign-ins with one recovery code one opens a session; nine codes are left."""
    ada = await factors.somebody()
    await ada.enrol()
    for number, code in enumerate(ada.codes[:3], 1):
        answers = await fifty_with_one_code(ada, RECOVERY, code.upper())
        assert opened(answers) == 1
        assert await sessions_of(owner, ada) == number
        left = (await factors.mfa.list_factors(ada.user.id, after=None, limit=5))[2]
        assert left == 10 - number
        factors.auth.room.limits._counts.clear()


async def test_without_the_stamp_a_recovery_code_would_work_fifty_times(
    factors: Factors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a code that is looked up and not used up lets everybody in."""

    async def look(conn: Connection, user_id: UUID, *, digest: bytes, now: datetime) -> bool:
        return bool(
            await conn.fetchval(
                "SELECT true FROM mfa_recovery_codes WHERE user_id = $1 AND digest = $2"
                " AND $3::timestamptz IS NOT NULL",
                user_id,
                digest,
                now,
            )
        )

    ada = await factors.somebody()
    await ada.enrol()
    monkeypatch.setattr(store, "take_recovery_code", look)
    assert opened(await fifty_with_one_code(ada, RECOVERY, ada.codes[0])) > 1


async def fifty_with_one_challenge(ada: Somebody) -> list[Any]:
    """Fifty callers complete one sign-in, each with one of ten good recovery codes."""
    challenge, codes = await ada.challenge(), ada.codes
    return await at_once(
        50, lambda index: ada.factors.complete(challenge, RECOVERY, codes[index % 10])
    )


async def test_a_challenge_opens_one_session(factors: Factors, owner: Connection) -> None:
    """However often and with however many good codes it is sent; one code is used up."""
    for _ in range(3):
        ada = await factors.somebody()
        await ada.enrol()
        answers = await fifty_with_one_challenge(ada)
        assert opened(answers) == 1
        refused = {answer.reason for answer in answers if isinstance(answer, Refusal)}
        assert refused == {"MFA_CHALLENGE_INVALID"}
        assert await sessions_of(owner, ada) == 1
        assert (await factors.mfa.list_factors(ada.user.id, after=None, limit=5))[2] == 9


async def test_an_unused_challenge_would_open_several(
    factors: Factors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a challenge that nobody uses up opens a session for each code."""

    async def forget(*_: object, **__: object) -> bool:
        return True

    ada = await factors.somebody()
    await ada.enrol()
    monkeypatch.setattr(store, "take_challenge", forget)
    assert opened(await fifty_with_one_challenge(ada)) > 1


async def test_a_challenge_takes_five_tries(factors: Factors, owner: Connection) -> None:
    """Of fifty wrong codes at once five are judged; the right one afterwards is too late."""
    ada = await factors.somebody()
    await ada.enrol()
    challenge = await ada.challenge()
    answers = await at_once(50, lambda _: factors.complete(challenge, TOTP, "000000"))
    assert sum(isinstance(answer, MfaCodeInvalid) for answer in answers) == 5
    assert await owner.fetchval("SELECT tries FROM mfa_challenges") == 5
    late = factors.complete(challenge, RECOVERY, ada.codes[0])
    assert await reason_of(late) == "MFA_CHALLENGE_INVALID"


async def test_wrong_codes_slow_an_account_down(factors: Factors) -> None:
    """New challenges do not give new guesses; a login's guesses are counted apart."""
    ada = await factors.somebody()
    await ada.enrol()
    for _ in range(6):
        wrong = ada.second_step(RECOVERY, "wrong")
        assert await reason_of(wrong) == "MFA_CODE_INVALID"
    challenge = await ada.challenge()
    held_off = factors.complete(challenge, RECOVERY, ada.codes[0])
    assert await reason_of(held_off) == "TOO_MANY_ATTEMPTS"


async def guess_from_everywhere(ada: Somebody, number: int) -> str:
    """Guesses a code from an address of its own; returns the reason it is refused for."""
    challenge, proof = await ada.challenge(), Proof(TOTP, "wrong")
    guess = ada.factors.proofs.complete_sign_in(
        challenge=challenge, proof=proof, address=f"198.51.100.{number}"
    )
    return await reason_of(guess)


async def test_guesses_from_everywhere_come_down_to_one_an_hour(factors: Factors) -> None:
    """The wait of a second factor grows on where that of a password stops, and is remembered."""
    ada = await factors.somebody()
    await ada.enrol()
    reasons = [await guess_from_everywhere(ada, number) for number in range(12)]
    assert reasons == ["MFA_CODE_INVALID"] * 11 + ["TOO_MANY_ATTEMPTS"]
    assert SECOND_FACTOR.wait(30) == 3600
    assert Settings().guesses().account.wait(30) == 60
    # Forgotten before its wait is over, a count would give all its free tries anew.
    assert SECOND_FACTOR.remembered >= 24 * SECOND_FACTOR.longest
    # Passwords are counted apart: one still gets as far as the second step.
    await ada.challenge()


@pytest.mark.parametrize("pause", [0, 86_400])
def test_a_second_factor_is_guessed_two_dozen_times_a_day(pause: float) -> None:
    """By whoever never rests, and by whoever lets the count be forgotten each time it is tight."""
    days, now, tries, failures, last = 60, 0.0, 0, 0.0, 0.0
    while now < days * 86_400:
        failures, last, tries = SECOND_FACTOR.left(failures, now - last) + 1, now, tries + 1
        wait = SECOND_FACTOR.wait(failures)
        now += pause if pause and wait >= SECOND_FACTOR.longest else wait
    assert tries <= 24 * days + 2 * SECOND_FACTOR.free + 2


async def test_a_passkey_gets_in_whatever_others_guess(factors: Factors) -> None:
    """Nobody guesses a passkey; who is held off by another's wrong codes may show it."""
    ada, device = await factors.somebody(), Authenticator()
    await ada.register(device)
    for number in range(12):
        last = await guess_from_everywhere(ada, number)
    assert last == "TOO_MANY_ATTEMPTS"
    tokens, _ = await ada.second_step(ProofKind.PASSKEY, await ada.with_passkey(device))
    assert tokens.session.acr == "aal2"


async def test_what_happens_meanwhile_ends_a_challenge(
    factors: Factors, owner: Connection, clock: FakeClock
) -> None:
    """A ban is LOGIN_FAILED; what ends tokens and time end the challenge; so does a forgery."""
    ada = await factors.somebody()
    await ada.enrol()
    challenge = await ada.challenge()
    code = ada.codes[0]
    await owner.execute("UPDATE users SET banned_at = now(), ban_reason = 'spam'")
    assert await reason_of(factors.complete(challenge, RECOVERY, code)) == "LOGIN_FAILED"
    await owner.execute("UPDATE users SET banned_at = NULL, ban_reason = NULL")
    await factors.auth.accounts.set_role(
        user_id=ada.user.id, role=Role.PRO, reason="paid", actor=SERVICE, key=None
    )
    invalid = "MFA_CHALLENGE_INVALID"
    assert await reason_of(factors.complete(challenge, RECOVERY, code)) == invalid
    challenge = await ada.challenge()
    clock.advance(minutes=5)
    assert await reason_of(factors.complete(challenge, RECOVERY, code)) == invalid
    assert await reason_of(factors.complete("forged", RECOVERY, code)) == invalid
    challenge = await ada.challenge()
    await owner.execute(
        "UPDATE users SET deletion_requested_at = now(), erasure_due_at = now(),"
        " erased_at = now(), password_hash = NULL"
    )
    assert await reason_of(factors.complete(challenge, RECOVERY, code)) == "LOGIN_FAILED"


async def test_a_step_up_is_a_fresh_proof(factors: Factors, clock: FakeClock) -> None:
    """Its token passes where the old one does not, and a refresh keeps what it says."""
    ada = await factors.somebody()
    tokens, _ = await log_in(factors.auth, ada.user.email)
    ada.caller = await factors.auth.verifier.verify(tokens.access_token)
    clock.advance(minutes=11)
    assert await reason_of(factors.mfa.enrol_totp(ada.caller)) == "STEP_UP_REQUIRED"
    for password, reason in (("wrong horse", "LOGIN_FAILED"), (PASSWORD, "")):
        proof = Proof(ProofKind.PASSWORD, password)
        assert await reason_of(factors.proofs.step_up(ada.caller, proof, None)) == reason
    refreshed = await factors.auth.sessions.refresh(tokens.refresh_token)
    ada.caller = await factors.auth.verifier.verify(refreshed.access_token)
    assert (ada.caller.auth_time, ada.caller.acr) == (
        clock.now().replace(microsecond=0),
        "aal1",
    )
    await ada.enrol()
    by_password = factors.proofs.step_up(ada.caller, Proof(ProofKind.PASSWORD, PASSWORD), None)
    assert await reason_of(by_password) == "STEP_UP_REQUIRED"
    for proof in (Proof(TOTP, "000000"), Proof(RECOVERY, "wrong")):
        wrong = factors.proofs.step_up(ada.caller, proof, None)
        assert await reason_of(wrong) == "MFA_CODE_INVALID"
    clock.advance(seconds=30)
    raised = await factors.proofs.step_up(ada.caller, Proof(TOTP, ada.code()), None)
    assert (raised.session.amr, raised.session.acr) == (("pwd", "otp"), "aal2")
    ada.caller = await factors.auth.verifier.verify(raised.access_token)
    await factors.mfa.disable_totp(ada.caller)


async def test_a_session_that_is_over_is_not_stepped_up(factors: Factors, clock: FakeClock) -> None:
    """SESSION_ENDED, even if the revocation has not reached the verifier; the code stays good."""
    ada = await factors.somebody()
    await ada.enrol()
    assert ada.caller.session_id is not None
    await factors.auth.sessions.logout(ada.caller.session_id, by="user")
    clock.advance(seconds=30)
    code = Proof(TOTP, ada.code())
    step_up = factors.proofs.step_up(ada.caller, code, None)
    assert await reason_of(step_up) == "SESSION_ENDED"
    await ada.second_step(TOTP, ada.code())
