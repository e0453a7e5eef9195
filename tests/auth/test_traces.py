"""What an erased person leaves behind: nothing in any column of any table but decisions by id."""

from datetime import timedelta

import pytest

from chassis.callers import Caller
from chassis.idempotency import Key
from chassis.postgres import Connection
from services.auth.domain.users import User
from services.auth.service.admin import AdminService
from services.auth.service.emails import EmailService
from services.auth.service.lifecycle import LifecycleService
from services.auth.store import users
from services.auth.worker import erase_due
from tests.auth.leaving import leave, mails, places_of
from tests.auth.mailing import sent
from tests.factories import MEANS, SERVICE, AuthRoom, log_in, reason_of
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


async def test_a_mail_that_is_asked_for_meanwhile_leaves_no_trace(
    auth: AuthRoom, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who is erased between being found and being written to is not written to."""
    user = await auth.accounts.register(email=ADDRESSES[0], password=PASSWORD, key=None)
    object.__setattr__(auth.room, "deletion_grace", timedelta(0))
    await leave(auth, user)
    find = users.find_by_email

    async def find_too_early(conn: Connection, email: str) -> User | None:
        found = await find(conn, email)
        assert await erase_due(LifecycleService(auth.room)) == 1
        return found

    monkeypatch.setattr(users, "find_by_email", find_too_early)
    emails = EmailService(auth.room, auth.sessions)
    await emails.request_reset(email=ADDRESSES[0], address=None)
    assert await mails(owner) == [("account_deleted", ADDRESSES[0])]
    assert await owner.fetchval("SELECT count(*) FROM reset_requests") == 0


async def test_an_erased_caller_changes_no_address(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """A token that outlived the account by a moment has nothing mailed."""
    user = await auth.accounts.register(email=ADDRESSES[0], password=PASSWORD, key=None)
    caller = await fresh(auth, ADDRESSES[0])
    object.__setattr__(auth.room, "deletion_grace", timedelta(0))
    await leave(auth, user)
    await erase_due(LifecycleService(auth.room))
    change = EmailService(auth.room, auth.sessions).request_change(
        caller, new_email=ADDRESSES[1], key=None
    )
    assert await reason_of(change) == "USER_NOT_FOUND"
    assert await places_of(owner, ADDRESSES[1]) == set()


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
