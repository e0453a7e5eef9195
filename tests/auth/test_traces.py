"""What an erased person leaves behind: nothing in any column of any table but decisions by id."""

from datetime import timedelta

from chassis.callers import Caller
from chassis.idempotency import Key
from chassis.postgres import Connection
from services.auth.domain.users import User
from services.auth.service.admin import AdminService
from services.auth.service.emails import EmailService
from services.auth.service.lifecycle import LifecycleService
from services.auth.worker import erase_due
from tests.auth.leaving import leave, mails, places_of
from tests.auth.mailing import sent
from tests.factories import MEANS, SERVICE, AuthRoom, log_in
from tests.fakes import FakeClock
from tests.running import PASSWORD

ADDRESSES = "ada.first@example.com", "ada.second@example.com", "ada.third@example.com"


def key_of(method: str, caller: str = "service:test") -> Key:
    return Key(caller, method, "k", b"same")


async def fresh(auth: AuthRoom, email: str) -> Caller:
    """Logs in with an idempotency key."""
    key = key_of("Login", f"public:{email[4:7]}")
    tokens, _ = await auth.sessions.login(email=email, password=PASSWORD, means=MEANS, key=key)
    return await auth.verifier.verify(tokens.access_token)


async def somebody_who_moved(auth: AuthRoom, owner: Connection, clock: FakeClock) -> User:
    """Has every mail sent, moves to the second address, is banned, asks for the third."""
    first, second, third = ADDRESSES
    emails, admin = EmailService(auth.room, auth.sessions), AdminService(auth.room, auth.sessions)
    user = await auth.accounts.register(email=first, password=PASSWORD, key=key_of("Register"))
    await emails.request_reset(email=first, address=None)
    await emails.request_sign_in(email=first, address=None)
    await emails.request_change(await fresh(auth, first), new_email=second, key=None)
    user = await emails.confirm_change((await sent(owner, "email_change", second)).secret)
    for act, named in ((admin.ban_user, {"until": None}), (admin.unban_user, {})):
        key = key_of(act.__name__)
        await act(user_id=user.id, reason="test", caller=SERVICE, key=key, **named)
    # The pause between two changes.
    clock.advance(hours=1)
    caller = await fresh(auth, second)
    await emails.request_change(caller, new_email=third, key=key_of("Change", caller.key))
    return user


async def test_no_address_an_erased_person_ever_had_is_left(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """Neither first answers nor mails, sent or not, name one; the last mail alone does."""
    user = await somebody_who_moved(auth, owner, clock)
    places = set[str]().union(*[await places_of(owner, address) for address in ADDRESSES])
    assert places >= {"auth_idempotency_keys.answer", "auth_outbox.payload", "users.email"}
    bob = await auth.accounts.register(
        email="bob@example.com", password=PASSWORD, key=key_of("Register", "public:bob")
    )
    object.__setattr__(auth.room, "deletion_grace", timedelta(0))
    await leave(auth, user)
    assert await erase_due(LifecycleService(auth.room)) == 1

    assert sorted(await mails(owner)) == [
        ("account_deleted", ADDRESSES[1]),
        ("email_verification", bob.email),
    ]
    await owner.execute("DELETE FROM auth_deliveries WHERE consumer = 'smtp'")
    await owner.execute("DELETE FROM auth_outbox WHERE topic = 'mail'")
    for address in ADDRESSES:
        assert await places_of(owner, address) == set(), address
    # An id that leads to nobody: the row itself, decisions, and what other rooms are told.
    assert await places_of(owner, str(user.id)) == {
        "users.id",
        "admin_logs.target_user_id",
        "auth_outbox.payload",
    }
    # What others called with keys is theirs.
    assert await places_of(owner, bob.email) >= {"auth_idempotency_keys.answer"}
    await log_in(auth, bob.email)
