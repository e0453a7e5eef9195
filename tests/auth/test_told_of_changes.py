"""The owner is told by mail of every change in how one signs in (OWASP ASVS 5.0, 6.3.7)."""

import json

from chassis.postgres import Connection
from services.auth.domain.emails import Change
from services.auth.domain.emails import Proof as Mailed
from services.auth.service.emails import EmailService
from services.auth.service.proofs import ProofKind
from tests.auth.factors import Factors, Somebody
from tests.auth.mailing import sign_in_mail
from tests.authenticator import Authenticator
from tests.factories import MEANS


async def told(owner: Connection, who: Somebody) -> list[str]:
    """Returns what the mails to somebody said was changed, sorted: they have one time."""
    rows = await owner.fetch(
        "SELECT payload FROM auth_outbox WHERE payload->>'template' = 'sign_in_methods_changed'"
        " AND payload->>'to' = $1 AND payload->>'about' = $2",
        who.user.email,
        str(who.user.id),
    )
    return sorted(json.loads(row["payload"])["values"]["change"] for row in rows)


async def test_factors_beside_others(factors: Factors, owner: Connection) -> None:
    """A further factor, one removed that is not the last, new codes and a used one."""
    ada = await factors.somebody()
    await ada.enrol()
    assert await told(owner, ada) == []
    await ada.sign_in()
    passkey_id, _ = await ada.register(Authenticator())
    assert await told(owner, ada) == [Change.PASSKEY_ADDED]
    codes = await factors.mfa.regenerate_recovery_codes(ada.caller, None)
    await ada.second_step(ProofKind.RECOVERY, codes[0])
    await factors.passkeys.delete(ada.caller, passkey_id, None)
    said = sorted(
        [Change.PASSKEY_ADDED, Change.CODES_REPLACED, Change.CODE_USED, Change.PASSKEY_REMOVED]
    )
    assert await told(owner, ada) == said
    # The last one is another mail's to say.
    await factors.mfa.disable_totp(ada.caller)
    assert await told(owner, ada) == said


async def test_an_app_beside_a_passkey(factors: Factors, owner: Connection) -> None:
    """Both its coming and its going are told."""
    ada = await factors.somebody()
    device = Authenticator()
    await ada.register(device)
    shown = await ada.with_passkey(device)
    tokens, _ = await factors.proofs.sign_in_with_passkey(shown, MEANS)
    ada.caller = await factors.auth.verifier.verify(tokens.access_token)
    await ada.enrol()
    await factors.mfa.disable_totp(ada.caller)
    assert await told(owner, ada) == sorted([Change.APP_ADDED, Change.APP_REMOVED])


async def test_a_password_that_nobody_vouched_for(
    factors: Factors, emails: EmailService, owner: Connection
) -> None:
    """Taken away by the first sign-in by mail, not by a later one."""
    ada = await factors.somebody(verified=False)
    for _ in range(2):
        factors.clock.advance(minutes=5)
        mail = await sign_in_mail(emails, owner, ada.user)
        await emails.sign_in(Mailed(mail.secret), MEANS, None)
        assert await told(owner, ada) == [Change.UNPROVED_LOGIN_REMOVED]
