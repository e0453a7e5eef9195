"""Passkeys with an authenticator in software, as use cases over a database of the test's own."""

import json
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog

from chassis.errors import Code, Refusal
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.postgres import Connection
from services.auth.domain.passkeys import MOST_PASSKEYS, Passkey
from services.auth.errors import PasskeyCloned, PasskeyInvalid, PasskeyRejected
from services.auth.service.proofs import Proof, ProofKind
from services.auth.store import mfa as store
from services.auth.store import passkeys as store_passkeys
from tests.auth.factors import Factors, Somebody, opened
from tests.authenticator import Authenticator
from tests.factories import MEANS, at_once, log_in, reason_of
from tests.fakes import FakeClock


def sign_in(somebody: Somebody, credential: str) -> Any:
    return somebody.factors.proofs.sign_in_with_passkey(credential, MEANS)


async def holder(factors: Factors, device: Authenticator) -> Somebody:
    """Somebody whose one factor is the passkey of a device, in a session of two factors."""
    somebody = await factors.somebody()
    await somebody.register(device)
    tokens, _ = await sign_in(somebody, await somebody.with_passkey(device))
    somebody.caller = await factors.auth.verifier.verify(tokens.access_token)
    return somebody


async def test_a_passkey_is_asked_for_as_the_standard_has_it(factors: Factors) -> None:
    """Discoverable, with its user verified; the options of a sign-in name nobody."""
    ada = await holder(factors, Authenticator())
    options = json.loads((await factors.passkeys.start_registration(ada.caller)).options)
    assert options["rp"] == {"id": "localhost", "name": "Finity"}
    assert options["authenticatorSelection"]["residentKey"] == "required"
    assert options["authenticatorSelection"]["userVerification"] == "required"
    assert options["attestation"] == "none"
    assert len(options["excludeCredentials"]) == 1
    asked = json.loads((await factors.passkeys.start_assertion()).options)
    assert asked.pop("challenge")
    assert asked == {
        "rpId": "localhost",
        "timeout": 300_000,
        "userVerification": "required",
        "allowCredentials": [],
    }


async def test_a_passkey_signs_in_alone(
    factors: Factors, owner: Connection, clock: FakeClock
) -> None:
    """It is two factors in one; the password alone is not enough any more."""
    ada, device = await factors.somebody(), Authenticator()
    passkey_id, codes = await ada.register(device)
    assert len(codes) == 10
    clock.advance(minutes=1)
    tokens, user = await sign_in(ada, await ada.with_passkey(device))
    assert (user.id, user.last_login) == (ada.user.id, clock.now())
    assert (tokens.session.amr, tokens.session.acr) == (("hwk",), "aal2")
    row = await owner.fetchrow("SELECT id, sign_count, last_used_at FROM passkeys")
    assert tuple(row) == (passkey_id, 2, clock.now())
    challenge = await ada.challenge()
    shown = await ada.with_passkey(device)
    tokens, _ = await factors.complete(challenge, ProofKind.PASSKEY, shown)
    assert (tokens.session.amr, tokens.session.acr) == (("pwd", "hwk"), "aal2")


async def test_a_synchronised_passkey_does_not_count(factors: Factors, owner: Connection) -> None:
    """A counter that stays 0 is not held against it; the session says that the key is copied."""
    device = Authenticator(counts=False)
    device.synced = True
    ada = await factors.somebody()
    await ada.register(device)
    for _ in range(3):
        tokens, _ = await sign_in(ada, await ada.with_passkey(device))
    assert tokens.session.amr == ("swk",)
    assert await owner.fetchval("SELECT sign_count FROM passkeys") == 0


async def test_a_counter_that_goes_back_is_refused_and_logged(factors: Factors) -> None:
    """PASSKEY_CLONED, also when it stands still; the challenge is used up all the same."""
    device = Authenticator()
    ada = await holder(factors, device)
    for count in (device.count - 1, 0):
        device.count = count
        shown = await ada.with_passkey(device)
        with structlog.testing.capture_logs() as logged, pytest.raises(PasskeyCloned) as refused:
            await sign_in(ada, shown)
        assert (refused.value.code, refused.value.reason) == (
            Code.UNAUTHENTICATED,
            "PASSKEY_CLONED",
        )
        (line,) = logged
        assert (line["event"], line["log_level"]) == ("passkey counter went back", "warning")
        assert await reason_of(sign_in(ada, shown)) == "PASSKEY_INVALID"
    device.count = 10
    await sign_in(ada, await ada.with_passkey(device))


async def fifty_with_one_answer(ada: Somebody, device: Authenticator) -> list[Any]:
    shown = await ada.with_passkey(device)
    return await at_once(50, lambda _: sign_in(ada, shown))


async def test_an_answer_signs_in_once(factors: Factors) -> None:
    """Of fifty callers with one answer of a passkey that does not count one gets a session."""
    device = Authenticator(counts=False)
    ada = await holder(factors, device)
    for _ in range(5):
        answers = await fifty_with_one_answer(ada, device)
        assert opened(answers) == 1
        assert sum(isinstance(answer, PasskeyInvalid) for answer in answers) == 49


async def test_an_unused_challenge_would_sign_in_fifty_times(
    factors: Factors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a challenge that nobody uses up opens several sessions."""

    async def forget(*_: object, **__: object) -> bool:
        return True

    device = Authenticator(counts=False)
    ada = await holder(factors, device)
    monkeypatch.setattr(store, "take_challenge", forget)
    assert opened(await fifty_with_one_answer(ada, device)) > 1


async def test_a_counter_moves_on_once(factors: Factors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fifty answers with one count one is taken, even if challenges guarded nothing."""

    async def forget(*_: object, **__: object) -> bool:
        return True

    device = Authenticator()
    ada = await holder(factors, device)
    monkeypatch.setattr(store, "take_challenge", forget)
    answers = await fifty_with_one_answer(ada, device)
    assert opened(answers) == 1
    assert sum(isinstance(answer, PasskeyCloned) for answer in answers) == 49


async def test_an_unguarded_counter_would_take_fifty(
    factors: Factors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a counter that is stored and not compared takes every answer."""

    async def store_only(
        conn: Connection, passkey_id: UUID, sign_count: int, now: datetime
    ) -> bool:
        await conn.execute(
            "UPDATE passkeys SET sign_count = $2, last_used_at = $3 WHERE id = $1",
            passkey_id,
            sign_count,
            now,
        )
        return True

    async def forget(*_: object, **__: object) -> bool:
        return True

    device = Authenticator()
    ada = await holder(factors, device)
    monkeypatch.setattr(store, "take_challenge", forget)
    monkeypatch.setattr(store_passkeys, "count_use", store_only)
    assert opened(await fifty_with_one_answer(ada, device)) > 1


async def test_an_answer_that_proves_nothing_is_refused(
    factors: Factors, owner: Connection, clock: FakeClock
) -> None:
    """Another page, nobody verified, another's handle or key, too late, unknown: all alike."""
    device = Authenticator()
    ada, bob = await holder(factors, device), await holder(factors, Authenticator())
    good = {name: getattr(device, name) for name in ("origin", "verifies", "user_handle", "key")}
    bad = {
        "origin": "https://evil.example",
        "verifies": False,
        "user_handle": bob.user.id.bytes,
        "key": Authenticator().key,
    }
    refusals = []

    async def refused(credential: str) -> None:
        with pytest.raises(Refusal) as caught:
            await sign_in(ada, credential)
        refusals.append((caught.value.reason, caught.value.message, caught.value.metadata))

    for name, value in bad.items():
        setattr(device, name, value)
        await refused(await ada.with_passkey(device))
        setattr(device, name, good[name])
    device.user_handle = None
    await refused(await ada.with_passkey(device))
    device.user_handle = ada.user.id.bytes
    stranger = Authenticator()
    stranger.rp_id = "localhost"
    await refused(await ada.with_passkey(stranger))
    shown = await ada.with_passkey(device)
    clock.advance(minutes=5)
    await refused(shown)
    registration = (await factors.passkeys.start_registration(bob.caller)).options
    await refused(device.get(registration))
    for garbage in ("", "{}", "[]", "null", "[" * 4000, json.dumps({"id": 1}), "\N{SNOWMAN}"):
        await refused(garbage)
    assert {reason for reason, *_ in refusals} == {"PASSKEY_INVALID"}
    assert all(refusal == refusals[0] for refusal in refusals)
    await sign_in(ada, await ada.with_passkey(device))
    await owner.execute("UPDATE users SET banned_at = now(), ban_reason = 'spam'")
    shown = await ada.with_passkey(device)
    assert await reason_of(sign_in(ada, shown)) == "LOGIN_FAILED"


async def test_only_the_account_s_own_passkey_is_its_second_factor(
    factors: Factors, clock: FakeClock
) -> None:
    """Another's passkey completes no sign-in and steps nobody up; the own one may omit its user."""
    device, other = Authenticator(), Authenticator()
    ada, bob = await holder(factors, device), await holder(factors, other)
    shown = await bob.with_passkey(other)
    completed = ada.second_step(ProofKind.PASSKEY, shown)
    assert await reason_of(completed) == "PASSKEY_INVALID"
    clock.advance(minutes=11)
    assert await reason_of(factors.passkeys.start_registration(ada.caller)) == "STEP_UP_REQUIRED"

    def step_up(credential: str) -> Any:
        proof = Proof(ProofKind.PASSKEY, credential)
        return factors.proofs.step_up(ada.caller, proof, None)

    assert await reason_of(step_up(await bob.with_passkey(other))) == "PASSKEY_INVALID"
    device.user_handle = None
    tokens = await step_up(await ada.with_passkey(device))
    ada.caller = await factors.auth.verifier.verify(tokens.access_token)
    await factors.passkeys.start_registration(ada.caller)


async def test_a_passkey_that_cannot_be_registered_is_rejected(
    factors: Factors, clock: FakeClock
) -> None:
    """Another page, nobody verified, another's or an old challenge, garbage, registered before."""
    ada, bob = await factors.somebody(), await factors.somebody()

    async def started(somebody: Somebody) -> str:
        return (await factors.passkeys.start_registration(somebody.caller)).options

    def finish(somebody: Somebody, credential: str) -> Any:
        return factors.passkeys.finish_registration(
            somebody.caller, credential=credential, name="phone", key=None
        )

    for device in (Authenticator(origin="https://evil.example"), Authenticator(verifies=False)):
        made = device.create(await started(ada))
        assert await reason_of(finish(ada, made)) == "PASSKEY_REJECTED"
    device = Authenticator()
    assert await reason_of(finish(bob, device.create(await started(ada)))) == "PASSKEY_REJECTED"
    made = device.create(await started(ada))
    clock.advance(minutes=5)
    assert await reason_of(finish(ada, made)) == "PASSKEY_REJECTED"
    for garbage in ("{}", "[" * 4000, json.dumps({"id": "x"})):
        assert await reason_of(finish(ada, garbage)) == "PASSKEY_REJECTED"
    await finish(ada, device.create(await started(ada)))
    with pytest.raises(PasskeyRejected):
        await finish(bob, device.create(await started(bob)))


async def test_a_registration_with_the_key_again_is_the_same_passkey(
    factors: Factors, owner: Connection
) -> None:
    """A lost answer does not lose the recovery codes; without the key the challenge is used."""
    ada, device = await factors.somebody(), Authenticator()
    made = device.create((await factors.passkeys.start_registration(ada.caller)).options)

    def finish(key: Key | None) -> Any:
        return factors.passkeys.finish_registration(
            ada.caller, credential=made, name="phone", key=key
        )

    key = Key(ada.caller.key, "FinishPasskeyRegistration", "k", b"same")
    answers = await at_once(20, lambda _: finish(key))
    assert answers == [answers[0]] * 20
    assert await owner.fetchval("SELECT count(*) FROM passkeys") == 1
    tokens, _ = await sign_in(ada, await ada.with_passkey(device))
    ada.caller = await factors.auth.verifier.verify(tokens.access_token)
    assert await reason_of(finish(None)) == "PASSKEY_REJECTED"


async def test_an_account_has_twenty_passkeys_at_most(factors: Factors, clock: FakeClock) -> None:
    """PASSKEY_LIMIT, before a device makes another one and before it is stored."""
    ada, device = await factors.somebody(), Authenticator()
    made = device.create((await factors.passkeys.start_registration(ada.caller)).options)
    async with factors.auth.room.database.transaction() as conn:
        for number in range(MOST_PASSKEYS):
            passkey = Passkey(
                uuid7(clock.now()), ada.user.id, bytes([number]), b"key", 0, synced=False
            )
            await store_passkeys.insert_passkey(conn, passkey, name="x", now=clock.now())
    assert await reason_of(factors.passkeys.start_registration(ada.caller)) == "PASSKEY_LIMIT"
    finish = factors.passkeys.finish_registration(
        ada.caller, credential=made, name="phone", key=None
    )
    assert await reason_of(finish) == "PASSKEY_LIMIT"


async def test_a_passkey_is_its_owner_s_to_delete(factors: Factors, owner: Connection) -> None:
    """The last one switches the second step off; another's is PASSKEY_NOT_FOUND."""
    device = Authenticator()
    ada, bob = await holder(factors, device), await holder(factors, Authenticator())
    (passkey,) = (await factors.mfa.list_factors(ada.user.id, after=None, limit=5))[0]
    for caller, passkey_id in ((bob.caller, passkey.id), (ada.caller, uuid4())):
        deleted = factors.passkeys.delete(caller, passkey_id, None)
        assert await reason_of(deleted) == "PASSKEY_NOT_FOUND"
    key = Key(ada.caller.key, "DeletePasskey", "k", b"same")
    await factors.passkeys.delete(ada.caller, passkey.id, key)
    assert (await factors.auth.accounts.get_user(ada.user.id)).mfa_enabled_at is None
    await factors.passkeys.delete(ada.caller, passkey.id, key)
    shown = await ada.with_passkey(device)
    assert await reason_of(sign_in(ada, shown)) == "PASSKEY_INVALID"
    await log_in(factors.auth, ada.user.email)


async def test_one_of_two_factors_goes_and_the_second_step_stays(factors: Factors) -> None:
    """Recovery codes come with the first factor and go with the last."""
    ada, device = await factors.somebody(), Authenticator()
    await ada.enrol()
    await ada.sign_in()
    _, codes = await ada.register(device)
    assert codes == []
    await factors.mfa.disable_totp(ada.caller)
    found, _, left = await factors.mfa.list_factors(ada.user.id, after=None, limit=5)
    assert ([factor.name for factor in found], left) == (["phone"], 10)
    await ada.second_step(ProofKind.RECOVERY, ada.codes[0])
