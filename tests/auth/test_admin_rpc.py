"""AdminService through real channels, on both transports, and the statements it searches with."""

import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from finity.auth.v1 import admin_pb2, admin_pb2_grpc, auth_pb2
from finity.usage.v1 import usage_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from chassis.ids import uuid7
from chassis.postgres import Connection
from services.auth.domain.admin import LogFilter, UserFilter, UserState
from services.auth.store import admin_logs as store_admin_logs
from services.auth.store import users as store_users
from tests.auth.test_rpc import refusal, refused, until_revoked
from tests.factories import connect_owner, make_user
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, Person, bearer, info_of

Stub = admin_pb2_grpc.AdminServiceStub
NOBODY = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture
def admin(house: House) -> Stub:
    return Stub(house.auth_channel)


async def an_admin(house: House) -> Person:
    return await house.person(role=auth_pb2.ROLE_ADMIN)


def stamp(moment: datetime) -> Timestamp:
    wire = Timestamp()
    wire.FromDatetime(moment)
    return wire


def ban_request(user_id: str, **fields: Any) -> admin_pb2.BanUserRequest:
    return admin_pb2.BanUserRequest(user_id=user_id, reason="spam", **fields)


async def test_a_ban_reaches_every_service(house: House, admin: Stub, clock: FakeClock) -> None:
    """Both services refuse the token at once, a login is refused, until the ban is over."""
    ada, bob = await an_admin(house), await house.person()
    until = clock.now() + timedelta(hours=1)
    request = ban_request(bob.user_id, expire_time=stamp(until))
    banned = (await admin.BanUser(request, metadata=ada.metadata)).user
    assert (banned.state, banned.ban_reason) == (admin_pb2.USER_STATE_BANNED, "spam")
    assert (banned.ban_time, banned.ban_expire_time) == (stamp(clock.now()), stamp(until))
    assert banned.user.user_id == bob.user_id
    await until_revoked(
        lambda: house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=bob.metadata)
    )
    await until_revoked(
        lambda: house.usage.GetBalance(usage_pb2.GetBalanceRequest(), metadata=bob.metadata)
    )
    login = auth_pb2.LoginRequest(email=bob.email, password=PASSWORD)
    assert (await refusal(house.auth.Login(login)))[1] == "LOGIN_FAILED"
    unban = admin_pb2.UnbanUserRequest(user_id=bob.user_id, reason="sorry")
    user = (await admin.UnbanUser(unban, metadata=house.service)).user
    assert (user.state, user.ban_reason) == (admin_pb2.USER_STATE_ACTIVE, "")
    assert not user.HasField("ban_time")
    await house.auth.Login(login)


async def test_refusals_keep_their_codes_on_the_wire(
    house: House, admin: Stub, clock: FakeClock
) -> None:
    """Each refusal of the contract, by code and reason."""
    ada, bob = await an_admin(house), await house.person()
    me = ada.metadata
    failed, invalid = StatusCode.FAILED_PRECONDITION, StatusCode.INVALID_ARGUMENT
    gone = (StatusCode.NOT_FOUND, "USER_NOT_FOUND")
    cases: list[tuple[Any, tuple[StatusCode, str]]] = [
        (admin.BanUser(ban_request(ada.user_id), metadata=me), (failed, "SELF_BAN")),
        (
            admin.BanUser(ban_request(ada.user_id), metadata=house.service),
            (StatusCode.PERMISSION_DENIED, "ROLE_NOT_GRANTABLE"),
        ),
        (admin.BanUser(ban_request(NOBODY), metadata=me), gone),
        (
            admin.BanUser(ban_request(bob.user_id, expire_time=stamp(clock.now())), metadata=me),
            (invalid, "BAN_EXPIRY_PASSED"),
        ),
        (
            admin.BanUser(
                ban_request(bob.user_id, expire_time=Timestamp(seconds=10**15)), metadata=me
            ),
            (invalid, "INVALID_REQUEST"),
        ),
        (
            admin.BanUser(admin_pb2.BanUserRequest(user_id=bob.user_id), metadata=me),
            (invalid, "INVALID_REQUEST"),
        ),
        (admin.ImpersonateUser(impersonation(NOBODY), metadata=me), gone),
        (
            admin.ImpersonateUser(impersonation(ada.user_id), metadata=me),
            (failed, "ADMIN_NOT_IMPERSONABLE"),
        ),
    ]
    for call, expected in cases:
        assert await refusal(call) == expected
    await admin.BanUser(ban_request(bob.user_id), metadata=me)
    error = await refused(admin.ImpersonateUser(impersonation(bob.user_id), metadata=me))
    assert info_of(error).reason == "USER_NOT_ACTIVE"
    assert dict(info_of(error).metadata) == {"state": "banned"}


def impersonation(user_id: str, **fields: Any) -> admin_pb2.ImpersonateUserRequest:
    return admin_pb2.ImpersonateUserRequest(user_id=user_id, reason="ticket 7", **fields)


async def test_an_impersonator_sees_what_the_user_sees(
    house: House, admin: Stub, clock: FakeClock
) -> None:
    """The tokens are the user's in every service, until Logout; the user's own session stays."""
    ada, bob = await an_admin(house), await house.person(credits=7)
    request = impersonation(bob.user_id, idempotency_key="k")
    answer = await admin.ImpersonateUser(request, metadata=ada.metadata)
    again = await admin.ImpersonateUser(request, metadata=ada.metadata)
    assert again.tokens.session_id == answer.tokens.session_id
    assert answer.user.user_id == bob.user_id
    assert answer.tokens.session_expire_time == stamp(clock.now() + timedelta(minutes=15))
    acting = bearer(answer.tokens.access_token)
    balance = await house.usage.GetBalance(usage_pb2.GetBalanceRequest(), metadata=acting)
    assert balance.balance.available == 7
    listing = admin.ListAdminLogs(admin_pb2.ListAdminLogsRequest(), metadata=acting)
    assert await refusal(listing) == (StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")
    await house.auth.Logout(auth_pb2.LogoutRequest(), metadata=acting)
    await until_revoked(lambda: house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=acting))
    await house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=bob.metadata)
    async with connect_owner(house.database_url) as owner:
        ended_by = await owner.fetchval(
            "SELECT ended_by FROM sessions WHERE id = $1", answer.tokens.session_id
        )
    assert ended_by == f"user:{ada.user_id}"


async def test_impersonating_needs_a_fresh_login(
    house: House, admin: Stub, clock: FakeClock
) -> None:
    """A session of eleven minutes is asked for a new proof; RFC 9470 says how fresh."""
    ada, bob = await an_admin(house), await house.person()
    clock.advance(minutes=11)
    error = await refused(admin.ImpersonateUser(impersonation(bob.user_id), metadata=ada.metadata))
    assert (error.code(), info_of(error).reason) == (
        StatusCode.UNAUTHENTICATED,
        "STEP_UP_REQUIRED",
    )
    assert dict(info_of(error).metadata) == {"acr_values": "aal1", "max_age": "600"}


async def test_sessions_are_ended_by_an_administrator(house: House, admin: Stub) -> None:
    """The answer counts them; a repeat with the key is the first answer."""
    ada, bob = await an_admin(house), await house.person()
    request = admin_pb2.RevokeUserSessionsRequest(
        user_id=bob.user_id, reason="lost phone", idempotency_key="k"
    )
    for _ in range(2):
        answer = await admin.RevokeUserSessions(request, metadata=ada.metadata)
        assert answer.ended_sessions == 1
    await until_revoked(
        lambda: house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=bob.metadata)
    )
    refresh = auth_pb2.RefreshSessionRequest(refresh_token=bob.tokens.refresh_token)
    error = await refused(house.auth.RefreshSession(refresh))
    assert dict(info_of(error).metadata) == {"end_reason": "revoked_by_admin"}


async def found_by(admin: Stub, me: Person, **filters: Any) -> list[str]:
    """Returns whom a search finds, all pages together."""
    request, ids = admin_pb2.SearchUsersRequest(page_size=2, **filters), []
    while True:
        page = await admin.SearchUsers(request, metadata=me.metadata)
        assert len(page.users) <= 2
        ids += [entry.user.user_id for entry in page.users]
        if not page.next_page_token:
            return ids
        request.page_token = page.next_page_token


async def test_users_are_found_by_every_filter(house: House, admin: Stub, clock: FakeClock) -> None:
    """Address, role, state and time, alone and together, newest first, without gap or repeat."""
    ada = await an_admin(house)
    ids: list[str] = []
    for number in range(5):
        clock.advance(minutes=1)
        register = auth_pb2.RegisterRequest(email=f"Eve_{number}%@example.com", password=PASSWORD)
        ids.insert(0, (await house.auth.Register(register)).user.user_id)
    assert await found_by(admin, ada) == [*ids, ada.user_id]
    assert await found_by(admin, ada, email_prefix="EVE_") == ids
    assert await found_by(admin, ada, email_prefix="eve_3%@") == [ids[1]]
    assert await found_by(admin, ada, email_prefix="eve%") == []
    assert await found_by(admin, ada, email_prefix="ve_") == []
    assert await found_by(admin, ada, role=auth_pb2.ROLE_ADMIN) == [ada.user_id]
    window = {
        "created_from_time": stamp(clock.now() - timedelta(minutes=3)),
        "created_until_time": stamp(clock.now()),
    }
    assert await found_by(admin, ada, **window) == ids[1:4]
    await admin.BanUser(ban_request(ids[2]), metadata=ada.metadata)
    banned = admin_pb2.USER_STATE_BANNED
    assert await found_by(admin, ada, state=banned) == [ids[2]]
    assert await found_by(admin, ada, state=banned, email_prefix="eve_2", **window) == [ids[2]]
    assert await found_by(admin, ada, state=banned, role=auth_pb2.ROLE_PRO) == []
    active = await found_by(admin, ada, state=admin_pb2.USER_STATE_ACTIVE)
    assert active == [*ids[:2], *ids[3:], ada.user_id]


async def test_a_page_token_is_bound_to_its_filters(house: House, admin: Stub) -> None:
    """Another filter, another list or garbage is PAGE_TOKEN_INVALID."""
    ada = await an_admin(house)
    await house.person()
    first = await admin.SearchUsers(
        admin_pb2.SearchUsersRequest(page_size=1), metadata=ada.metadata
    )
    invalid = (StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    for request in (
        admin_pb2.SearchUsersRequest(page_token=first.next_page_token, email_prefix="a"),
        admin_pb2.SearchUsersRequest(page_token="garbage"),
    ):
        assert await refusal(admin.SearchUsers(request, metadata=ada.metadata)) == invalid
    logs = admin_pb2.ListAdminLogsRequest(page_token=first.next_page_token)
    assert await refusal(admin.ListAdminLogs(logs, metadata=ada.metadata)) == invalid


async def logs_by(admin: Stub, me: Person, **filters: Any) -> list[int]:
    """Returns the places of the entries a filter leaves, all pages together."""
    request, places = admin_pb2.ListAdminLogsRequest(page_size=2, **filters), []
    while True:
        page = await admin.ListAdminLogs(request, metadata=me.metadata)
        assert len(page.logs) <= 2
        places += [entry.seq for entry in page.logs]
        if not page.next_page_token:
            return places
        request.page_token = page.next_page_token


async def test_the_log_is_listed_by_every_filter(
    house: House, admin: Stub, clock: FakeClock
) -> None:
    """Target, actor, action and time, newest first; SetRole is in the same chain."""
    ada = await an_admin(house)
    bob, eve = await house.person(), await house.person()
    await house.person(role=auth_pb2.ROLE_PRO)
    clock.advance(minutes=1)
    start = clock.now()
    for person in (bob, eve):
        clock.advance(minutes=1)
        await admin.BanUser(ban_request(person.user_id), metadata=ada.metadata)
    unban = admin_pb2.UnbanUserRequest(user_id=bob.user_id, reason="sorry")
    await admin.UnbanUser(unban, metadata=house.service)
    assert await logs_by(admin, ada) == [4, 3, 2, 1]
    assert await logs_by(admin, ada, target_user_id=bob.user_id) == [4, 2]
    assert await logs_by(admin, ada, actor="service:test") == [4, 1]
    assert await logs_by(admin, ada, action="ban_user") == [3, 2]
    assert await logs_by(admin, ada, action="set_role") == [1]
    window = {"from_time": stamp(start), "until_time": stamp(clock.now())}
    assert await logs_by(admin, ada, **window) == [2]
    assert await logs_by(admin, ada, actor=f"user:{ada.user_id}", action="unban_user") == []
    page = await admin.ListAdminLogs(admin_pb2.ListAdminLogsRequest(), metadata=ada.metadata)
    newest = page.logs[0]
    assert (newest.target_user_id, dict(newest.details)) == (bob.user_id, {"reason": "sorry"})
    assert newest.create_time == stamp(clock.now())
    assert len(bytes.fromhex(newest.hash)) == 32


async def test_every_state_is_found(conn: Connection, clock: FakeClock) -> None:
    """The statement's states are those that state_of says; each user is in exactly one."""
    now = clock.now()
    deleting = "deletion_requested_at = $2, erasure_due_at = $2"
    changes = {
        UserState.ACTIVE: "banned_at = $2, banned_until = $3, ban_reason = 'over'",
        UserState.BANNED: f"{deleting}, banned_at = $2, ban_reason = 'b'",
        UserState.DELETING: deleting,
        UserState.ERASED: f"{deleting}, erased_at = $2, password_hash = NULL,"
        " banned_at = $2, ban_reason = 'b'",
    }
    made = {}
    for state, change in changes.items():
        made[state] = (await make_user(conn, clock)).id
        await conn.execute(
            f"UPDATE users SET {change}, last_login = $3 WHERE id = $1 AND $2 < $3::timestamptz",  # noqa: S608
            *(made[state], now - timedelta(hours=2), now),
        )
    for state, user_id in made.items():
        wanted = UserFilter(state=state)
        found = await store_users.search_users(conn, wanted, before=None, limit=9, now=now)
        assert [user.id for user in found] == [user_id], state


class Explaining:
    """Stands where a connection does and keeps the indexes a search would read."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self.indexes: set[str] = set()
        self.sequential = False

    async def execute(self, statement: str) -> None:
        await self._conn.execute(statement)

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        values = ", ".join("'" + str(value).replace("'", "''") + "'" for value in arguments)
        await self._conn.execute(f"PREPARE searched AS {statement}")
        lines = await self._conn.fetch(f"EXPLAIN EXECUTE searched ({values})")
        await self._conn.execute("DEALLOCATE searched")
        plan = "\n".join(str(line[0]) for line in lines)
        self.indexes = set(re.findall(r"\w+_(?:idx|key)\b", plan))
        self.sequential = "Seq Scan" in plan
        return []


async def test_searches_read_indexes(conn: Connection, clock: FakeClock) -> None:
    """Every filter has an index; the log's are read whatever the values are."""
    now = clock.now()
    await conn.execute(
        "INSERT INTO users (id, email, created_at) SELECT gen_random_uuid(),"
        " 'u' || n || '@example.com', now() - make_interval(mins => n)"
        " FROM generate_series(1, 5000) AS n"
    )
    await conn.execute(
        "INSERT INTO admin_logs (id, actor, action, target_user_id, created_at)"
        " SELECT gen_random_uuid(), 'user:' || n, 'test_' || chr(97 + n % 26)"
        " || chr(97 + n / 26 % 26),"
        " gen_random_uuid(), now() - make_interval(mins => n) FROM generate_series(1, 2000) AS n"
    )
    await conn.execute("ANALYZE users; ANALYZE admin_logs")
    explaining = Explaining(conn)
    # What a connection comes to after some searches, unless the store says otherwise.
    await conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    for wanted, index in (
        (UserFilter(email_prefix="u123"), "users_email_prefix_idx"),
        (UserFilter(), "users_created_at_idx"),
        (UserFilter(created_from=now - timedelta(days=1)), "users_created_at_idx"),
        (UserFilter(state=UserState.BANNED), "users_banned_at_idx"),
    ):
        await store_users.search_users(
            explaining, wanted, before=(now, UUID(int=0)), limit=51, now=now
        )
        assert explaining.indexes == {index}, wanted
        assert not explaining.sequential
    await conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    for filters, index in (
        (LogFilter(target=uuid7(now)), "admin_logs_target_seq_idx"),
        (LogFilter(actor="user:7"), "admin_logs_actor_seq_idx"),
        (LogFilter(action="test_ab"), "admin_logs_action_seq_idx"),
        (LogFilter(), "admin_logs_seq_key"),
    ):
        await store_admin_logs.list_admin_logs(explaining, filters, before=10**6, limit=51)
        assert explaining.indexes == {index}, filters
        assert not explaining.sequential


async def test_the_walk_reads_an_index(conn: Connection) -> None:
    """However long the log is, a page of the walk is a page of an index."""
    explaining = Explaining(conn)
    await conn.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
    await store_admin_logs.walk_admin_logs(explaining, after=(5, uuid4()), limit=100)
    assert explaining.indexes == {"admin_logs_seq_key"}
