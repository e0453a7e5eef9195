"""Sign-ins by mail and by an identity provider, where an account has a second factor."""

from dataclasses import replace

import pytest

from chassis.idempotency import Key
from chassis.postgres import Connection
from services.auth.domain.emails import Proof
from services.auth.errors import MfaRequired
from services.auth.service.emails import EmailService
from services.auth.service.proofs import ProofKind
from tests import github
from tests.auth.factors import Factors
from tests.auth.leaving import places_of
from tests.auth.mailing import NEW_PASSWORD, by_code, reset_mail, sign_in_mail
from tests.auth.test_oauth import Desk, desk
from tests.factories import MEANS, AuthRoom, reason_of

__all__ = ["desk"]


async def test_a_link_is_used_up_by_what_it_proved(
    factors: Factors, emails: EmailService, owner: Connection
) -> None:
    """Of a link and its code one reaches the second step, once, and that step opens the session."""
    ada = await factors.somebody()
    await owner.execute("UPDATE users SET email_verified_at = created_at")
    await ada.enrol()
    mail = await sign_in_mail(emails, owner, ada.user)
    with pytest.raises(MfaRequired) as held:
        await emails.sign_in(Proof(mail.secret), MEANS, None)
    assert await reason_of(emails.sign_in(Proof(mail.secret), MEANS, None)) == "MAIL_SECRET_INVALID"
    code = by_code(ada.user, mail.code)
    assert await reason_of(emails.sign_in(code, MEANS, None)) == "MAIL_SECRET_INVALID"
    factors.clock.advance(seconds=30)
    challenge = held.value.metadata["challenge"]
    tokens, user = await factors.complete(challenge, ProofKind.TOTP, ada.code())
    assert (user.id, tokens.session.acr) == (ada.user.id, "aal2")


async def test_the_key_again_is_held_back_again(
    factors: Factors, emails: EmailService, owner: Connection
) -> None:
    """A lost MFA_REQUIRED is asked for again: the same challenge, which opens one session."""
    ada = await factors.somebody()
    await owner.execute("UPDATE users SET email_verified_at = created_at")
    await ada.enrol()
    mail = await sign_in_mail(emails, owner, ada.user)
    means = replace(MEANS, device="Ada's phone")
    key = Key("public", "SignIn", "k", b"same")
    challenges = []
    for _ in range(3):
        with pytest.raises(MfaRequired) as held:
            await emails.sign_in(Proof(mail.secret), means, key)
        assert held.value.metadata["methods"] == "totp,recovery_code"
        challenges.append(held.value.metadata["challenge"])
        factors.clock.advance(seconds=30)
    assert len(set(challenges)) == 1
    assert await places_of(owner, "Ada's phone") == set()
    assert await places_of(owner, challenges[0]) == set()
    tokens, _ = await factors.complete(challenges[0], ProofKind.TOTP, ada.code())
    device = await owner.fetchval("SELECT device FROM sessions WHERE id = $1", tokens.session.id)
    assert device == "Ada's phone"
    late = factors.complete(challenges[0], ProofKind.RECOVERY, ada.codes[0])
    assert await reason_of(late) == "MFA_CHALLENGE_INVALID"


async def test_a_squatter_s_factor_does_not_stay(
    factors: Factors, emails: EmailService, owner: Connection, auth: AuthRoom
) -> None:
    """Who reads the mailbox of an unverified account gets it without the factors of another."""
    squatter = await factors.somebody()
    await squatter.enrol()
    mail = await sign_in_mail(emails, owner, squatter.user)
    _, user = await emails.sign_in(Proof(mail.secret), MEANS, None)
    assert (user.id, user.mfa_enabled_at) == (squatter.user.id, None)
    assert await owner.fetchval("SELECT count(*) FROM mfa_totp") == 0
    assert await owner.fetchval("SELECT count(*) FROM mfa_recovery_codes") == 0


async def test_a_reset_of_an_unverified_account_takes_it_over(
    factors: Factors, emails: EmailService, owner: Connection, auth: AuthRoom
) -> None:
    """A reset does the same; one of a verified account leaves the second factor where it is."""
    squatter, ada = await factors.somebody(), await factors.somebody()
    for person in (squatter, ada):
        await person.enrol()
    await owner.execute(
        "UPDATE users SET email_verified_at = created_at WHERE id = $1", ada.user.id
    )
    for person in (squatter, ada):
        mail = await reset_mail(emails, owner, person.user)
        await emails.reset_password(secret=mail.secret, new_password=NEW_PASSWORD)
    assert await owner.fetch("SELECT user_id FROM mfa_totp") == [(ada.user.id,)]
    enabled = await owner.fetch("SELECT id FROM users WHERE mfa_enabled_at IS NOT NULL")
    assert enabled == [(ada.user.id,)]


async def test_a_provider_is_one_factor(desk: Desk, factors: Factors, owner: Connection) -> None:
    """A sign-in at a provider is held back for the second factor, and its flow is used up."""
    person = github.Person()
    user = await desk.sign_in(person)
    await owner.execute("UPDATE users SET mfa_enabled_at = created_at")
    flow, answer = await desk.come_back(person)
    finish = desk.oauth.finish_sign_in
    assert await reason_of(finish(flow=flow, answer=answer, means=MEANS)) == "MFA_REQUIRED"
    assert await reason_of(finish(flow=flow, answer=answer, means=MEANS)) == "OAUTH_STATE_INVALID"
    assert await owner.fetchval("SELECT count(*) FROM sessions WHERE user_id = $1", user.id) == 1
