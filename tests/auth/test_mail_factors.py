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
from tests.auth.test_oauth import Desk, answered, desk
from tests.authenticator import Authenticator
from tests.factories import MEANS, log_in, reason_of

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


@pytest.mark.parametrize("way", ["sign_in", "reset"])
async def test_a_squatter_leaves_no_way_in(
    *,
    desk: Desk,
    factors: Factors,
    emails: EmailService,
    owner: Connection,
    way: str,
) -> None:
    """Whoever registered an address without reading its mail has nothing when its owner comes."""
    squatter = await factors.somebody(verified=False)
    refused = [
        await reason_of(factors.mfa.enrol_totp(squatter.caller)),
        await reason_of(factors.passkeys.start_registration(squatter.caller)),
        await reason_of(desk.link(squatter.user.id, github.Person())),
    ]
    assert refused == ["EMAIL_NOT_VERIFIED"] * 3
    if way == "sign_in":
        mail = await sign_in_mail(emails, owner, squatter.user)
        await emails.sign_in(Proof(mail.secret), MEANS, None)
    else:
        mail = await reset_mail(emails, owner, squatter.user)
        await emails.reset_password(secret=mail.secret, new_password=NEW_PASSWORD)
    assert await reason_of(log_in(factors.auth, squatter.user.email)) == "LOGIN_FAILED"
    session = await owner.fetchrow(
        "SELECT ended_at IS NOT NULL AS over, end_reason FROM sessions WHERE id = $1",
        squatter.caller.session_id,
    )
    assert tuple(session) == (True, "password_reset")
    user = await factors.auth.accounts.get_user(squatter.user.id)
    assert (user.email_verified_at, user.mfa_enabled_at) == (factors.clock.now(), None)
    for table in ("mfa_totp", "mfa_recovery_codes", "passkeys", "oauth_identities"):
        assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 0  # noqa: S608


async def test_what_was_started_before_is_not_finished(
    desk: Desk, factors: Factors, owner: Connection
) -> None:
    """The address counts when a factor or an identity is stored, not only when one is begun."""
    ada = await factors.somebody()
    ada.secret = (await factors.mfa.enrol_totp(ada.caller)).secret
    options = (await factors.passkeys.start_registration(ada.caller)).options
    started = await desk.oauth.start_linking(
        ada.caller, provider="github", redirect_uri=github.REDIRECT_URI
    )
    await owner.execute("UPDATE users SET email_verified_at = NULL")
    credential = Authenticator().create(options)
    answer = answered(started, github.Person())
    refused = [
        await reason_of(factors.mfa.confirm_totp(ada.caller, ada.code(), None)),
        await reason_of(
            factors.passkeys.finish_registration(
                ada.caller, credential=credential, name="phone", key=None
            )
        ),
        await reason_of(desk.oauth.finish_linking(ada.caller, flow=started.flow, answer=answer)),
    ]
    assert refused == ["EMAIL_NOT_VERIFIED"] * 3


async def test_a_reset_leaves_a_second_factor(
    factors: Factors, emails: EmailService, owner: Connection
) -> None:
    """A mailbox is one factor: who reads it sets a password, and needs the other one still."""
    ada = await factors.somebody()
    await ada.enrol()
    mail = await reset_mail(emails, owner, ada.user)
    await emails.reset_password(secret=mail.secret, new_password=NEW_PASSWORD)
    assert await owner.fetch("SELECT user_id FROM mfa_totp") == [(ada.user.id,)]
    assert (await factors.auth.accounts.get_user(ada.user.id)).mfa_enabled_at is not None


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
