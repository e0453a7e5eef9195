"""Having mails sent to somebody, for tests of what they prove."""

from chassis.callers import Caller
from chassis.postgres import Connection
from services.auth.domain import one_time
from services.auth.domain.emails import Proof
from services.auth.domain.users import User
from services.auth.service.emails import EmailService
from tests.factories import AuthRoom, derive, log_in
from tests.mailbox import Sent, newest

KEY = derive(one_time.PURPOSE)
NEW_PASSWORD = "another horse battery"


async def sent(owner: Connection, template: str, to: str) -> Sent:
    return await newest(owner, template, to, KEY)


async def reset_mail(emails: EmailService, owner: Connection, user: User) -> Sent:
    await emails.request_reset(email=user.email, address=None)
    return await sent(owner, "password_reset", user.email)


async def sign_in_mail(emails: EmailService, owner: Connection, user: User) -> Sent:
    await emails.request_sign_in(email=user.email, address=None)
    return await sent(owner, "sign_in", user.email)


async def change_mail(
    emails: EmailService, auth: AuthRoom, owner: Connection, user: User, to: str
) -> Sent:
    await emails.request_change(await fresh(auth, user), new_email=to, key=None)
    return await sent(owner, "email_change", to)


async def fresh(auth: AuthRoom, user: User) -> Caller:
    """The user, just logged in."""
    tokens, _ = await log_in(auth, user.email)
    return await auth.verifier.verify(tokens.access_token)


def by_code(user: User, code: str) -> Proof:
    return Proof(email=user.email, code=code)
