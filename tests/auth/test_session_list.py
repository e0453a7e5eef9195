"""SessionService through real channels, on both transports."""

from collections.abc import Awaitable
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from finity.auth.v1 import auth_pb2, session_pb2, session_pb2_grpc
from finity.usage.v1 import usage_pb2
from grpc import StatusCode, aio

from chassis.postgres import Connection
from services.auth.domain.session_list import Ender, ender_of
from services.auth.domain.sessions import EndReason
from services.auth.errors import SessionEnded, SessionNotFound
from services.auth.service.session_list import SessionListService
from services.auth.store import session_list as store_session_list
from services.auth.store import sessions as store_sessions
from services.auth.store import users as store_users
from tests.factories import SERVICE, AuthRoom, an_address, answers_with, at_once, eventually, log_in
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, Person, refusal_of

NOT_FOUND = (StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")


def stub(house: House) -> session_pb2_grpc.SessionServiceStub:
    return session_pb2_grpc.SessionServiceStub(house.auth_channel)


async def refusal(call: Awaitable[Any]) -> tuple[StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return refusal_of(caught.value)


async def again(house: House, person: Person, device: str = "") -> Person:
    """Logs the same person in once more."""
    request = auth_pb2.LoginRequest(email=person.email, password=PASSWORD, device=device)
    return Person(person.user_id, person.email, (await house.auth.Login(request)).tokens)


async def listed(house: House, person: Person, **asked: Any) -> list[session_pb2.Session]:
    """Returns every session of a person, read in pages of two."""
    found: list[session_pb2.Session] = []
    request = session_pb2.ListSessionsRequest(page_size=2, **asked)
    while True:
        page = await stub(house).ListSessions(request, metadata=person.metadata)
        assert len(page.sessions) <= 2
        found += page.sessions
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def explained(
    house: House, person: Person, session_id: str, metadata: Any = None
) -> session_pb2.ExplainSessionResponse:
    request = session_pb2.ExplainSessionRequest(user_id=person.user_id, session_id=session_id)
    return await stub(house).ExplainSession(request, metadata=metadata or person.metadata)


async def test_sessions_are_listed_newest_first(house: House, clock: FakeClock) -> None:
    """A list says device, address, times and means of every living session, and which is ours."""
    first = await house.person()
    clock.advance(seconds=1)
    laptop = await again(house, first, "Ada's laptop")
    clock.advance(seconds=1)
    last = await again(house, first)
    refresh = auth_pb2.RefreshSessionRequest(refresh_token=laptop.tokens.refresh_token)
    await house.auth.RefreshSession(refresh)
    found = await listed(house, last)
    expected = [person.tokens.session_id for person in (last, laptop, first)]
    assert [session.session_id for session in found] == expected
    assert [session.current for session in found] == [True, False, False]
    shown = found[1]
    assert (shown.device, shown.address) == ("Ada's laptop", "127.0.0.1")
    assert (list(shown.amr), shown.acr) == (["pwd"], "aal1")
    assert shown.last_seen_time.ToMilliseconds() == int(clock.now().timestamp() * 1000)
    assert shown.create_time.ToMilliseconds() < shown.last_seen_time.ToMilliseconds()
    assert shown.expire_time == laptop.tokens.session_expire_time
    assert shown.last_seen_time.seconds < shown.idle_expire_time.seconds < shown.expire_time.seconds
    assert not shown.HasField("end_time")


async def test_sessions_that_are_over_are_listed_if_asked_for(
    house: House, clock: FakeClock
) -> None:
    """Ended and idle sessions are left out, or come with when and why they ended."""
    idle = await house.person()
    clock.advance(days=31)
    gone = await again(house, idle)
    await house.auth.Logout(auth_pb2.LogoutRequest(), metadata=gone.metadata)
    here = await again(house, idle)
    assert [s.session_id for s in await listed(house, here)] == [here.tokens.session_id]
    found = {s.session_id: s for s in await listed(house, here, include_ended=True)}
    assert {found[p.tokens.session_id].end_reason for p in (here, gone, idle)} == {
        "",
        "logout",
        "idle",
    }
    lapsed = found[idle.tokens.session_id]
    assert lapsed.end_time == lapsed.idle_expire_time


async def test_a_page_token_is_bound_to_its_list(house: House) -> None:
    """Another user or filter with a page token is PAGE_TOKEN_INVALID."""
    person, other = await house.person(), await house.person(role=auth_pb2.ROLE_ADMIN)
    for _ in range(2):
        await again(house, person)
    request = session_pb2.ListSessionsRequest(page_size=1)
    page = await stub(house).ListSessions(request, metadata=person.metadata)
    for misuse, metadata in (
        ({"include_ended": True}, person.metadata),
        ({"user_id": other.user_id}, other.metadata),
    ):
        request = session_pb2.ListSessionsRequest(page_token=page.next_page_token, **misuse)
        assert await refusal(stub(house).ListSessions(request, metadata=metadata)) == (
            StatusCode.INVALID_ARGUMENT,
            "PAGE_TOKEN_INVALID",
        )


async def test_a_session_is_named_by_its_user(house: House) -> None:
    """A name is kept; a session that is over cannot be named."""
    person = await house.person()
    request = session_pb2.NameSessionRequest(session_id="current", device="Kitchen \N{SNOWMAN}")
    named = (await stub(house).NameSession(request, metadata=person.metadata)).session
    assert (named.session_id, named.current) == (person.tokens.session_id, True)
    assert [s.device for s in await listed(house, person)] == ["Kitchen \N{SNOWMAN}"]
    gone = await again(house, person)
    await house.auth.Logout(auth_pb2.LogoutRequest(), metadata=gone.metadata)
    request.session_id = gone.tokens.session_id
    assert await refusal(stub(house).NameSession(request, metadata=person.metadata)) == NOT_FOUND


async def test_a_session_of_somebody_else_is_as_unknown_as_none(house: House) -> None:
    """Naming, revoking and explaining a foreign id and one that is nobody's get one answer."""
    person, other = await house.person(), await house.person()
    admin = await house.person(role=auth_pb2.ROLE_ADMIN)
    for session_id in (other.tokens.session_id, str(uuid4())):
        calls: list[Awaitable[Any]] = [
            stub(house).NameSession(
                session_pb2.NameSessionRequest(session_id=session_id, device="mine"),
                metadata=person.metadata,
            ),
            stub(house).RevokeSession(
                session_pb2.RevokeSessionRequest(session_id=session_id), metadata=person.metadata
            ),
            stub(house).RevokeSession(
                session_pb2.RevokeSessionRequest(user_id=person.user_id, session_id=session_id),
                metadata=admin.metadata,
            ),
            explained(house, person, session_id),
            explained(house, person, session_id, house.service),
        ]
        for call in calls:
            assert await refusal(call) == NOT_FOUND
    current = explained(house, person, "current", house.service)
    assert await refusal(current) == NOT_FOUND
    assert (await explained(house, other, "current")).alive


async def test_a_user_ends_a_session_of_its_own(house: House) -> None:
    """A revoked session's tokens are refused everywhere; ending it again changes nothing."""
    person = await house.person()
    lost = await again(house, person)
    request = session_pb2.RevokeSessionRequest(session_id=lost.tokens.session_id)
    for _ in range(2):
        ended = (await stub(house).RevokeSession(request, metadata=person.metadata)).session
        assert ended.end_reason == "revoked_by_user"
    balance = usage_pb2.GetBalanceRequest()
    await eventually(
        lambda: answers_with(
            house.usage.GetBalance(balance, metadata=lost.metadata), "TOKEN_REVOKED"
        )
    )
    refresh = auth_pb2.RefreshSessionRequest(refresh_token=lost.tokens.refresh_token)
    assert await refusal(house.auth.RefreshSession(refresh)) == (
        StatusCode.UNAUTHENTICATED,
        "SESSION_ENDED",
    )
    await house.usage.GetBalance(balance, metadata=person.metadata)
    told = await explained(house, person, lost.tokens.session_id)
    assert (told.ended_by, told.ended_by_caller) == (session_pb2.SESSION_ENDER_USER, "")


async def test_an_administrator_ends_anybody_s_and_it_is_logged(
    house: House, owner: Connection
) -> None:
    """The admin log says who, whose and why; the user learns that it was an administrator."""
    person, admin = await house.person(), await house.person(role=auth_pb2.ROLE_ADMIN)
    here = await again(house, person)
    session_id = person.tokens.session_id
    request = session_pb2.RevokeSessionRequest(
        user_id=person.user_id, session_id=session_id, reason="stolen laptop"
    )
    for _ in range(2):
        await stub(house).RevokeSession(request, metadata=admin.metadata)
    rows = await owner.fetch(
        "SELECT actor, target_user_id, details->>'reason' AS reason,"
        " details->>'session_id' AS session_id FROM admin_logs WHERE action = 'revoke_session'"
    )
    assert [tuple(row) for row in rows] == [
        (f"user:{admin.user_id}", UUID(person.user_id), "stolen laptop", session_id)
    ]
    told = await explained(house, here, session_id)
    assert (told.alive, told.session.end_reason) == (False, "revoked_by_admin")
    assert (told.ended_by, told.ended_by_caller) == (session_pb2.SESSION_ENDER_ADMIN, "")
    told = await explained(house, person, session_id, house.service)
    assert told.ended_by_caller == f"user:{admin.user_id}"


async def test_all_other_sessions_end(house: House) -> None:
    """The session that asks goes on, all others of the user end, nobody else's do."""
    person, stranger = await house.person(), await house.person()
    others = [await again(house, person) for _ in range(3)]
    request = session_pb2.RevokeOtherSessionsRequest()
    answer = await stub(house).RevokeOtherSessions(request, metadata=person.metadata)
    assert answer.ended == 3
    answer = await stub(house).RevokeOtherSessions(request, metadata=person.metadata)
    assert answer.ended == 0
    assert [s.session_id for s in await listed(house, person)] == [person.tokens.session_id]
    assert not (await explained(house, person, others[0].tokens.session_id)).alive
    assert (await explained(house, stranger, "current")).alive


async def test_a_living_session_is_explained(house: House, clock: FakeClock) -> None:
    """It lives, until when if it is left alone, and until when in any case."""
    person = await house.person()
    told = await explained(house, person, "current", None)
    assert (told.alive, told.ended_by) == (True, session_pb2.SESSION_ENDER_UNSPECIFIED)
    assert not told.HasField("replay")
    now = int(clock.now().timestamp())
    assert told.session.idle_expire_time.seconds - now == 30 * 86400
    assert told.session.expire_time.seconds - now == 90 * 86400


async def test_a_replay_is_explained(house: House, clock: FakeClock) -> None:
    """Why was I logged out: which token came back, which was expected, and from where."""
    person = await house.person()
    tokens = person.tokens
    for _ in range(3):
        request = auth_pb2.RefreshSessionRequest(refresh_token=tokens.refresh_token)
        tokens = (await house.auth.RefreshSession(request)).tokens
    clock.advance(minutes=11)
    stolen = auth_pb2.RefreshSessionRequest(refresh_token=person.tokens.refresh_token)
    assert await refusal(house.auth.RefreshSession(stolen)) == (
        StatusCode.UNAUTHENTICATED,
        "REFRESH_TOKEN_REPLAYED",
    )
    here = await again(house, person)
    told = await explained(house, here, person.tokens.session_id)
    assert told.session.end_reason == "refresh_token_replayed"
    assert told.ended_by == session_pb2.SESSION_ENDER_SYSTEM
    assert told.session.end_time.ToMilliseconds() == int(clock.now().timestamp() * 1000)
    assert told.replay == session_pb2.RefreshTokenReplay(
        counter_seen=0, counter_expected=3, address="127.0.0.1"
    )


async def test_a_good_token_says_how_its_user_authenticated(house: House, clock: FakeClock) -> None:
    """ValidateToken answers as RFC 7662 has it: since when, how, how strongly, which token."""
    person = await house.person()
    opened = int(clock.now().timestamp())
    clock.advance(minutes=2)
    refresh = auth_pb2.RefreshSessionRequest(refresh_token=person.tokens.refresh_token)
    token = (await house.auth.RefreshSession(refresh)).tokens.access_token
    said = await house.auth.ValidateToken(
        auth_pb2.ValidateTokenRequest(token=token), metadata=house.service
    )
    assert (said.active, said.acr, list(said.amr)) == (True, "aal1", ["pwd"])
    assert (said.auth_time.seconds, said.issue_time.seconds) == (opened, opened + 120)
    assert said.expire_time.seconds == said.issue_time.seconds + 900
    assert said.token_id == jwt.decode(token, options={"verify_signature": False})["jti"]


@pytest.mark.parametrize(
    ("by", "ender"),
    [
        ("user", Ender.USER),
        (f"user:{UUID(int=1)}", Ender.USER),
        (f"user:{UUID(int=2)}", Ender.ADMIN),
        ("service:billing", Ender.SERVICE),
        ("system", Ender.SYSTEM),
    ],
)
def test_who_ended_it_is_seen_from_its_owner(by: str, ender: Ender) -> None:
    """Another user that ends a session is an administrator."""
    assert ender_of(by, UUID(int=1)) is ender


async def opened(auth: AuthRoom, count: int) -> tuple[UUID, list[UUID]]:
    """Returns a new user and its sessions."""
    email = an_address()
    user = await auth.accounts.register(email=email, password=PASSWORD, key=None)
    logins = [(await log_in(auth, email))[0] for _ in range(count)]
    return user.id, [tokens.session.id for tokens in logins]


async def end_fifty_times(auth: AuthRoom) -> None:
    user_id, (session_id,) = await opened(auth, 1)
    service = SessionListService(auth.room)
    await at_once(50, lambda _: service.revoke(user_id, session_id, caller=SERVICE, why="race"))


@pytest.mark.usefixtures("every_connection")
async def test_a_session_ends_once(auth: AuthRoom, owner: Connection) -> None:
    """Of 50 who end somebody's session at once, one did."""
    await end_fifty_times(auth)
    assert len(auth.announced) == 1
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") == 1


@pytest.mark.usefixtures("every_connection")
async def test_looking_first_would_end_it_often(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the conditional statement the same race ends it several times."""

    async def look_first(conn: Connection, session_id: UUID, **values: Any) -> bool:
        session = await store_sessions.get_session(conn, session_id)
        await conn.execute("SELECT pg_sleep(0.05)")
        await conn.execute(
            "UPDATE sessions SET ended_at = $2, end_reason = $3, ended_by = $4 WHERE id = $1",
            session_id,
            values["now"],
            values["reason"],
            values["by"],
        )
        return session is not None and session.ended_at is None

    monkeypatch.setattr(store_sessions, "end_session", look_first)
    await end_fifty_times(auth)
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") > 1


async def race_each_other(auth: AuthRoom) -> tuple[int, list[Any]]:
    """Fifty sessions of a user each end all the others; returns how many live, and the answers."""
    user_id, sessions = await opened(auth, 50)
    service = SessionListService(auth.room)
    answers = await at_once(
        50, lambda index: service.revoke_others(user_id, sessions[index], actor=f"user:{user_id}")
    )
    living, _ = await service.list(user_id, include_ended=False, before=None, limit=100)
    return len(living), answers


@pytest.mark.usefixtures("every_connection")
async def test_sessions_that_end_each_other_leave_one(auth: AuthRoom) -> None:
    """One of 50 wins; the others are over before they can end it."""
    living, answers = await race_each_other(auth)
    assert living == 1
    assert [answer for answer in answers if isinstance(answer, int)] == [49]
    assert {answer.reason for answer in answers if not isinstance(answer, int)} == {
        SessionEnded.reason
    }


@pytest.mark.usefixtures("every_connection")
async def test_without_the_account_s_lock_none_would_be_left(
    auth: AuthRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: sessions that do not wait for each other end each other."""

    async def no_lock(*_: Any) -> None:
        return None

    find = store_sessions.get_session

    async def slowly(conn: Connection, session_id: UUID) -> Any:
        found = await find(conn, session_id)
        await conn.execute("SELECT pg_sleep(0.05)")
        return found

    monkeypatch.setattr(store_users, "lock_user", no_lock)
    monkeypatch.setattr(store_sessions, "get_session", slowly)
    living, answers = await race_each_other(auth)
    assert living == 0 or len([answer for answer in answers if isinstance(answer, int)]) > 1


async def test_a_session_that_is_gone_ends_nothing(auth: AuthRoom, clock: FakeClock) -> None:
    """A session deleted or lapsed meanwhile is SESSION_ENDED to its own call, else unknown."""
    user_id, (session_id,) = await opened(auth, 1)
    service = SessionListService(auth.room)
    with pytest.raises(SessionNotFound):
        await service.explain(user_id, uuid4())
    with pytest.raises(SessionEnded):
        await service.revoke_others(user_id, uuid4(), actor="user")
    clock.advance(days=91)
    with pytest.raises(SessionEnded):
        await service.revoke_others(user_id, session_id, actor="user")
    with pytest.raises(SessionNotFound):
        await service.name(user_id, session_id, "late")


async def test_only_a_replay_leaves_the_marks_of_one(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """A session that ended otherwise cannot carry a replay: a constraint holds it."""
    user_id, (session_id,) = await opened(auth, 1)
    with pytest.raises(Exception, match="sessions_replay_ended_it"):
        await owner.execute("UPDATE sessions SET replayed_counter = 0 WHERE id = $1", session_id)
    async with auth.room.database.transaction() as conn:
        await store_sessions.end_replayed(conn, session_id, seen=0, address=None, now=clock.now())
        found = await store_session_list.find_session(conn, user_id, session_id)
    assert found is not None
    assert found.session.end_reason == EndReason.REPLAY
    assert found.replay is not None
    assert (found.replay.seen, found.replay.address) == (0, None)
