"""What ends a session in which an administrator acts as somebody: whatever it stands on."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pyotp
import pytest

from chassis.callers import Caller, Kind
from chassis.postgres import Connection
from services.auth.domain.users import Role, User
from services.auth.service.admin import AdminService
from services.auth.service.emails import EmailService
from services.auth.service.lifecycle import LifecycleService
from services.auth.service.mfa import MfaService
from services.auth.service.passwords import PasswordService
from services.auth.service.session_list import SessionListService
from services.auth.service.sessions import Tokens
from services.auth.store import sessions as store_sessions
from tests.auth.mailing import NEW_PASSWORD, reset_mail, sent
from tests.auth.test_impersonation import ada, admin, bob, impersonate, logged_in, set_role
from tests.factories import AuthRoom, an_address, at_once, make_user, reason_of, sooner_or_later
from tests.fakes import FakeClock
from tests.owner import make_admin, verify_address
from tests.running import PASSWORD

__all__ = ["ada", "admin", "bob"]


async def reset(auth: AuthRoom, ada: Caller) -> None:
    """Resets an administrator's password by a mailed link."""
    user = await auth.accounts.get_user(ada.user_id or uuid4())
    emails = EmailService(auth.room, auth.sessions)
    async with auth.room.database.connection() as conn:
        mail = await reset_mail(emails, conn, user)
    await emails.reset_password(secret=mail.secret, new_password=NEW_PASSWORD)


async def enrol(auth: AuthRoom, ada: Caller) -> None:
    """Gives an administrator an authenticator app."""
    async with auth.room.database.connection() as conn:
        await verify_address(conn, ada.user_id or uuid4())
    mfa, now = MfaService(auth.room), auth.room.clock.now()
    enrolled = await mfa.enrol_totp(ada)
    await mfa.confirm_totp(ada, pyotp.TOTP(enrolled.secret).at(now), None)


async def move(auth: AuthRoom, ada: Caller) -> None:
    """Gives an administrator another address by a mailed link."""
    emails, to = EmailService(auth.room, auth.sessions), an_address()
    await emails.request_change(ada, new_email=to, key=None)
    async with auth.room.database.connection() as conn:
        mail = await sent(conn, "email_change", to)
    await emails.confirm_change(mail.secret)


async def ban_by_another(auth: AuthRoom, admin: AdminService, ada: Caller) -> None:
    """Has an administrator banned by another one."""
    clock = auth.room.clock
    async with auth.room.database.connection() as conn:
        eve = await make_user(conn, clock)
        await make_admin(conn, eve.id)
    other = Caller(Kind.USER, user_id=eve.id, auth_time=clock.now())
    target = ada.user_id or uuid4()
    await admin.ban_user(user_id=target, reason="t", until=None, caller=other, key=None)


Ending = Callable[[AuthRoom, AdminService, Caller, User, Tokens], Awaitable[object]]
ENDINGS: dict[str, Ending] = {
    "its logout": lambda auth, _admin, _ada, _bob, tokens: auth.sessions.logout(
        tokens.session.id, by="t"
    ),
    "a ban of the user": lambda _auth, admin, ada, bob, _tokens: admin.ban_user(
        user_id=bob.id, reason="t", until=None, caller=ada, key=None
    ),
    "a ban of the administrator": lambda auth, admin, ada, _bob, _tokens: ban_by_another(
        auth, admin, ada
    ),
    "the end of the administrator's sessions": lambda _auth, admin, ada, _bob, _tokens: (
        admin.revoke_sessions(user_id=ada.user_id or uuid4(), reason="t", caller=ada, key=None)
    ),
    "the end of the user's sessions": lambda _auth, admin, ada, bob, _tokens: admin.revoke_sessions(
        user_id=bob.id, reason="t", caller=ada, key=None
    ),
    "the administrator's demotion": lambda auth, _admin, ada, _bob, _tokens: set_role(
        auth, ada, ada.user_id, Role.PRO
    ),
    "a change of the administrator's password": lambda auth, _admin, ada, _bob, _tokens: (
        PasswordService(auth.room).change(
            caller=ada, current=PASSWORD, new=NEW_PASSWORD, address=None, key=None
        )
    ),
    "a reset of the administrator's password": lambda auth, _admin, ada, _bob, _tokens: reset(
        auth, ada
    ),
    "the administrator's first factor": lambda auth, _admin, ada, _bob, _tokens: enrol(auth, ada),
    "a reset of the administrator's factors": lambda auth, _admin, ada, _bob, _tokens: MfaService(
        auth.room
    ).reset(ada, user_id=ada.user_id or uuid4(), reason="t", key=None),
    "the end of the administrator's other sessions": lambda auth, _admin, ada, _bob, _tokens: (
        SessionListService(auth.room).revoke_others(
            ada.user_id or uuid4(), ada.session_id or uuid4(), actor=ada.key
        )
    ),
    "the administrator's leaving": lambda auth, _admin, ada, _bob, _tokens: LifecycleService(
        auth.room
    ).request_deletion(caller=ada),
    "the administrator's new address": lambda auth, _admin, ada, _bob, _tokens: move(auth, ada),
    "the user's promotion": lambda auth, _admin, ada, bob, _tokens: set_role(
        auth, ada, bob.id, Role.ADMIN
    ),
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_it_ends_with_what_it_stands_on(
    *,
    auth: AuthRoom,
    admin: AdminService,
    owner: Connection,
    ada: Caller,
    bob: User,
    clock: FakeClock,
    how: str,
) -> None:
    """Its access token is refused at once and its refresh token too."""
    await make_user(owner, clock, role=Role.ADMIN)
    tokens = await impersonate(admin, bob.id, ada)
    await ENDINGS[how](auth, admin, ada, bob, tokens)
    assert await reason_of(auth.verifier.verify(tokens.access_token)) == "TOKEN_REVOKED"
    assert await reason_of(auth.sessions.refresh(tokens.refresh_token)) == "SESSION_ENDED"


async def opened_meanwhile(
    auth: AuthRoom, admin: AdminService, owner: Connection, bob: User
) -> int:
    """An administrator's password changes while it impersonates; counts what lives afterwards."""
    user = await auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
    await make_admin(owner, user.id)
    thief, ada = await logged_in(auth, user), await logged_in(auth, user)

    changed = asyncio.Event()

    async def one(index: int) -> None:
        if index == 0:
            try:
                await PasswordService(auth.room).change(
                    caller=ada, current=PASSWORD, new=NEW_PASSWORD, address=None, key=None
                )
            finally:
                changed.set()
        while not changed.is_set():
            await impersonate(admin, bob.id, thief)

    answers = await at_once(5, one)
    assert answers[0] is None
    return int(
        await owner.fetchval(
            "SELECT count(*) FROM sessions WHERE impersonated_by = $1 AND ended_at IS NULL", user.id
        )
    )


async def test_who_is_put_out_acts_as_nobody(
    auth: AuthRoom, admin: AdminService, owner: Connection, bob: User
) -> None:
    """An impersonation at the moment of the change is ended by it or refused, in every round."""
    for _ in range(10):
        assert await opened_meanwhile(auth, admin, owner, bob) == 0


async def test_without_a_second_look_a_thief_would_act(
    *,
    auth: AuthRoom,
    admin: AdminService,
    owner: Connection,
    bob: User,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: a session that is over opens others as long as its token is good."""

    async def trusting(*_: object) -> None:
        """Looks at nothing."""

    monkeypatch.setattr("services.auth.service.admin.require_living", trusting)

    async def outlives() -> bool:
        return await opened_meanwhile(auth, admin, owner, bob) > 0

    assert await sooner_or_later(outlives)


class Explainer:
    """Stands where a connection does and explains what it is asked to run."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self.plan = ""

    async def fetch(self, statement: str, *arguments: object) -> list[object]:
        lines = await self._conn.fetch(f"EXPLAIN {statement}", *arguments)
        self.plan = "\n".join(line[0] for line in lines)
        return []


@pytest.mark.parametrize("end", [store_sessions.end_sessions, store_sessions.end_impersonations])
async def test_sessions_are_found_by_indexes(
    conn: Connection, clock: FakeClock, end: Callable[..., Awaitable[object]]
) -> None:
    """However many sessions there are, one user's and those it acts in are not looked for."""
    people = [(await make_user(conn, clock)).id for _ in range(50)]
    await conn.execute(
        "INSERT INTO sessions (id, user_id, access_token, refresh_token, created_at, expires_at,"
        " refreshed_at, last_seen_at, impersonated_by, ended_at, end_reason, ended_by)"
        " SELECT gen_random_uuid(), ($1::uuid[])[1 + n % 49], 'a', n::text, $2::timestamptz,"
        " $2::timestamptz + interval '15 min', $2, $2,"
        " CASE WHEN n % 20 = 0 THEN ($1::uuid[])[50] END,"
        " CASE WHEN n % 5 > 0 THEN $2 END, CASE WHEN n % 5 > 0 THEN 'logout' END,"
        " CASE WHEN n % 5 > 0 THEN 'test' END FROM generate_series(1, 20000) AS n",
        people,
        clock.now(),
    )
    await conn.execute("ANALYZE sessions")
    explainer = Explainer(conn)
    await end(explainer, people[0], reason="t", by="t", now=clock.now())
    assert "Seq Scan on sessions" not in explainer.plan, explainer.plan
