"""Users of another system: what becomes of each, and their first login here."""

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import bcrypt
import pytest
from finity.auth.v1 import auth_pb2, password_pb2, password_pb2_grpc
from finity.usage.v1 import usage_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode, aio

from chassis import contract
from chassis.errors import Refusal
from chassis.logs import redact
from chassis.postgres import Connection
from services.auth.domain.imports import SKEW, Imported, Newcomer, Outcome, Rejection, judge
from services.auth.domain.users import Role
from services.auth.service import imports as service_imports
from services.auth.service.imports import ImportService
from services.auth.store import imports as store_imports
from services.auth.store.imports import NewUser
from tests.auth.test_hashes import GOOD, made_django
from tests.factories import (
    MEANS,
    AuthRoom,
    an_address,
    answers_with,
    at_once,
    connect_owner,
    eventually,
    log_in,
    reason_of,
)
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, refusal_of

HASHED = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()
LONG = "é" * 60


def newcomer(email: str = "", **fields: Any) -> Newcomer:
    """A user as another system had it; whatever is not named is valid."""
    valid: dict[str, Any] = {
        "role": Role.FREE,
        "email_verified": True,
        "created": (1_500_000_000, 123_456_789),
        "password_hash": HASHED,
    }
    return Newcomer(email=email or an_address(), **{**valid, **fields})


async def bring(auth: AuthRoom, *newcomers: Newcomer) -> Sequence[Imported]:
    return await ImportService(auth.room).import_users(newcomers, actor="service:test")


async def test_an_imported_account_is_one(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """It has its role, its age and its verified address; user_registered announces it."""
    one, other = newcomer(role=Role.PRO), newcomer(created=None, email_verified=False)
    results = await bring(auth, one, other)
    assert [result.outcome for result in results] == [Outcome.CREATED] * 2
    first, second = [await auth.accounts.get_user(r.user_id) for r in results if r.user_id]
    assert (first.email, first.role) == (one.email, Role.PRO)
    assert first.created_at == datetime(2017, 7, 14, 2, 40, 0, 123456, UTC)
    assert (first.email_verified_at, first.last_login) == (clock.now(), None)
    assert (second.created_at, second.email_verified_at) == (clock.now(), None)
    events = await owner.fetch(
        "SELECT o.topic, o.payload->>'user_id' AS user_id, d.consumer, d.state,"
        " u.xmin::text = o.xmin::text AND o.xmin::text = d.xmin::text AS together"
        " FROM auth_outbox o JOIN auth_deliveries d ON d.event_id = o.id"
        " JOIN users u ON u.id::text = o.payload->>'user_id'"
    )
    expected = {("user_registered", str(user.id), "usage", "due", True) for user in (first, second)}
    # And a role above free as a change to it.
    expected.add(("role_changed", str(first.id), "usage", "due", True))
    assert {tuple(row) for row in events} == expected
    listed, _ = await auth.accounts.list_users(role=None, before=None, limit=10)
    assert [user.id for user in listed] == [second.id, first.id]


async def test_the_first_login_replaces_the_hash(auth: AuthRoom, owner: Connection) -> None:
    """The old hash verifies once and is argon2id from then on, of the whole password."""
    cut = bcrypt.hashpw(LONG.encode()[:72], bcrypt.gensalt(10)).decode()
    people = [newcomer(), newcomer(password_hash=cut)]
    await bring(auth, *people)
    await log_in(auth, people[0].email)
    assert await reason_of(auth_login(auth, people[1].email, "wrong")) == "LOGIN_FAILED"
    await auth_login(auth, people[1].email, LONG)
    hashes = await owner.fetch("SELECT password_hash FROM users")
    assert all(row["password_hash"].startswith("$argon2id$") for row in hashes)
    assert await reason_of(auth_login(auth, people[1].email, LONG[:36])) == "LOGIN_FAILED"
    await auth_login(auth, people[1].email, LONG)


def auth_login(auth: AuthRoom, email: str, password: str) -> Any:
    return auth.sessions.login(email=email, password=password, means=MEANS, key=None)


async def test_every_format_logs_in(auth: AuthRoom) -> None:
    """A hash within the bounds is taken in any format; one verifies here for the others."""
    django = newcomer(password_hash=made_django(PASSWORD, rounds=10_000))
    results = await bring(auth, django, *(newcomer(password_hash=hashed) for hashed in GOOD))
    assert {result.outcome for result in results} == {Outcome.CREATED}
    await log_in(auth, django.email)


async def test_an_account_may_come_without_a_password(auth: AuthRoom, owner: Connection) -> None:
    """No password fits it until it sets one by mail."""
    one = newcomer(password_hash="")
    await bring(auth, one)
    assert await owner.fetchval("SELECT password_hash IS NULL FROM users")
    assert await reason_of(log_in(auth, one.email)) == "LOGIN_FAILED"


async def test_one_bad_user_does_not_keep_the_others_out(
    auth: AuthRoom, owner: Connection, clock: FakeClock
) -> None:
    """Each is rejected by its reason, in its place; nothing of it is written."""
    later = int((clock.now() + SKEW + timedelta(seconds=1)).timestamp())
    wrong = [
        (newcomer("ada"), Rejection.EMAIL_INVALID),
        (newcomer("ada@exa mple.com"), Rejection.EMAIL_INVALID),
        (newcomer("ada\0@example.com"), Rejection.EMAIL_INVALID),
        (newcomer("é@example.com"), Rejection.EMAIL_INVALID),
        (newcomer(f"{'a' * 243}@example.com"), Rejection.EMAIL_INVALID),
        (newcomer(role=None), Rejection.ROLE_UNKNOWN),
        (newcomer(role=Role.ADMIN), Rejection.ROLE_DENIED),
        (newcomer(created=(later, 0)), Rejection.CREATE_TIME_INVALID),
        (newcomer(created=(-1, 0)), Rejection.CREATE_TIME_INVALID),
        (newcomer(created=(0, 10**9)), Rejection.CREATE_TIME_INVALID),
        (newcomer(created=(2**62, 0)), Rejection.CREATE_TIME_INVALID),
        (newcomer(password_hash=PASSWORD), Rejection.HASH_FORMAT_UNKNOWN),
        (newcomer(password_hash="a\0b"), Rejection.HASH_FORMAT_UNKNOWN),
        (newcomer(password_hash="$2b$04$" + HASHED[7:]), Rejection.HASH_TOO_WEAK),
        (newcomer(password_hash="$2b$31$" + HASHED[7:]), Rejection.HASH_TOO_COSTLY),
    ]
    mixed = [one for pair in wrong for one in (pair[0], newcomer())]
    results = await bring(auth, *mixed)
    expected = [Imported(Outcome.REJECTED, rejection=why) for _, why in wrong]
    assert list(results[::2]) == expected
    assert {result.outcome for result in results[1::2]} == {Outcome.CREATED}
    assert await owner.fetchval("SELECT count(*) FROM users") == len(wrong)
    assert await owner.fetchval("SELECT count(*) FROM auth_outbox") == len(wrong)
    assert judge(newcomer(created=(later - 1, 0)), clock.now()) is None


async def test_an_address_that_has_an_account_is_a_duplicate(
    auth: AuthRoom, owner: Connection
) -> None:
    """Nothing of the account changes, whatever comes for it; its id is told."""
    email = an_address()
    user = await auth.accounts.register(email=email, password=PASSWORD, key=None)
    before = await owner.fetchrow("SELECT users FROM users")
    one = newcomer()
    results = await bring(auth, newcomer(email, role=Role.PRO), one, one)
    assert results[0] == Imported(Outcome.DUPLICATE, user.id)
    assert [result.outcome for result in results] == ["duplicate", "created", "duplicate"]
    assert results[1].user_id == results[2].user_id
    assert await owner.fetchrow("SELECT users FROM users WHERE id = $1", user.id) == before
    again = await bring(auth, one)
    assert again == [Imported(Outcome.DUPLICATE, results[1].user_id)]
    assert await owner.fetchval("SELECT count(*) FROM users") == 2
    topics = await owner.fetch("SELECT topic FROM auth_outbox")
    # The mail is the registration's: an import sends none.
    assert sorted(row["topic"] for row in topics) == ["mail", *["user_registered"] * 2]
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") == 0


async def test_roles_that_are_given_are_logged(auth: AuthRoom, owner: Connection) -> None:
    """An import of a role above free says who did it, to whom, in the same transaction."""
    results = await bring(auth, newcomer(), newcomer(role=Role.PRO))
    row = await owner.fetchrow(
        "SELECT l.actor, l.action, l.target_user_id, l.details::text,"
        " u.xmin::text = l.xmin::text AS together"
        " FROM admin_logs l JOIN users u ON u.id = l.target_user_id"
    )
    expected = ("service:test", "import_user", results[1].user_id, '{"role": "pro"}', True)
    assert tuple(row) == expected
    assert await owner.fetchval("SELECT count(*) FROM admin_logs") == 1


async def test_all_or_nothing(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an event cannot be written, no account is made."""

    async def fail(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(service_imports, "enqueue_all", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        await bring(auth, newcomer())
    assert await owner.fetchval("SELECT count(*) FROM users") == 0


async def fifty_imports(auth: AuthRoom) -> list[Any]:
    """50 callers import the same ten users, each in an order of its own."""
    people = [newcomer() for _ in range(10)]
    orders = [random.sample(people, len(people)) for _ in range(50)]
    return await at_once(50, lambda index: bring(auth, *orders[index]))


@pytest.mark.usefixtures("every_connection")
async def test_fifty_imports_make_each_account_once(auth: AuthRoom, owner: Connection) -> None:
    """Whoever comes second finds duplicates; nobody deadlocks; each is announced once."""
    answers = [one for one in await fifty_imports(auth) if not isinstance(one, Refusal)]
    outcomes = [result.outcome for results in answers for result in results]
    assert outcomes.count(Outcome.CREATED) == 10
    assert outcomes.count(Outcome.DUPLICATE) == len(outcomes) - 10
    assert await owner.fetchval("SELECT count(*) FROM users") == 10
    assert await owner.fetchval("SELECT count(*) FROM auth_outbox") == 10


@pytest.mark.usefixtures("every_connection")
async def test_look_before_insert_would_make_several(
    auth: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the constraint the same race makes accounts twice."""
    await owner.execute("ALTER TABLE users DROP CONSTRAINT users_email_key")

    async def look_first(conn: Connection, rows: Sequence[NewUser]) -> set[Any]:
        known = await store_imports.find_ids(conn, [row.email for row in rows])
        await asyncio.sleep(0.05)
        new = [row for row in rows if row.email not in known]
        for row in new:
            await conn.execute(
                "INSERT INTO users (id, email, created_at) VALUES ($1, $2, $3)",
                row.id,
                row.email,
                row.created_at,
            )
        return {row.id for row in new}

    monkeypatch.setattr(service_imports, "insert_users", look_first)
    await fifty_imports(auth)
    assert await owner.fetchval("SELECT count(*) FROM users") > 10


@pytest.mark.parametrize(
    "email",
    ["a@b", "Ada@Example.com", "a" * 64 + "@" + "b" * 63 + ".de", "a@b..c", "@b", "a@-b", ""],
)
def test_an_address_is_judged_as_by_register(email: str) -> None:
    """What the contract of Register takes as an address an import takes, and nothing else."""
    request = auth_pb2.RegisterRequest(email=email, password=PASSWORD)
    try:
        contract.validate(request)
    except Refusal:
        expected: Rejection | None = Rejection.EMAIL_INVALID
    else:
        expected = None
    valid = Newcomer(email, Role.FREE, email_verified=False, created=None, password_hash="")
    assert judge(valid, FakeClock().now()) is expected


async def import_over_the_wire(
    house: House, *users: password_pb2.ImportedUser, metadata: Any = None
) -> password_pb2.ImportUsersResponse:
    stub = password_pb2_grpc.PasswordServiceStub(house.auth_channel)
    request = password_pb2.ImportUsersRequest(users=users)
    return await stub.ImportUsers(request, metadata=metadata or house.service)


async def test_an_import_over_the_wire(house: House) -> None:
    """500 users in one call; each outcome in its place; the imported log in and have accounts."""
    taken = await house.person()
    email = an_address()
    users = [
        password_pb2.ImportedUser(
            email=f" {email.upper()} ",
            role=auth_pb2.ROLE_PRO,
            email_verified=True,
            create_time=Timestamp(seconds=1_500_000_000),
            password_hash=HASHED,
        ),
        password_pb2.ImportedUser(email=taken.email, password_hash=HASHED),
        password_pb2.ImportedUser(email=an_address(), password_hash="md5:1234"),
        password_pb2.ImportedUser(email=an_address(), role=99),  # type: ignore[arg-type]
        *(password_pb2.ImportedUser(email=an_address()) for _ in range(496)),
    ]
    answer = await import_over_the_wire(house, *users)
    assert (answer.created, answer.duplicates, answer.rejected) == (497, 1, 2)
    assert answer.results[1].user_id == taken.user_id
    assert [(result.outcome, result.rejection) for result in answer.results[:4]] == [
        (password_pb2.IMPORT_OUTCOME_CREATED, 0),
        (password_pb2.IMPORT_OUTCOME_DUPLICATE, 0),
        (password_pb2.IMPORT_OUTCOME_REJECTED, password_pb2.IMPORT_REJECTION_HASH_FORMAT_UNKNOWN),
        (password_pb2.IMPORT_OUTCOME_REJECTED, password_pb2.IMPORT_REJECTION_ROLE_UNKNOWN),
    ]
    login = await house.auth.Login(auth_pb2.LoginRequest(email=email, password=PASSWORD))
    user = login.user
    assert (user.user_id, user.role) == (answer.results[0].user_id, auth_pb2.ROLE_PRO)
    assert user.email_verified
    assert user.create_time.seconds == 1_500_000_000
    balance = usage_pb2.GetBalanceRequest(user_id=user.user_id)
    await eventually(
        lambda: answers_with(house.usage.GetBalance(balance, metadata=house.service), ""),
        seconds=30,
    )


@pytest.mark.parametrize("count", [0, 501])
async def test_an_import_is_bounded(house: House, count: int) -> None:
    """No users and more than 500 are INVALID_REQUEST."""
    users = [password_pb2.ImportedUser(email=an_address()) for _ in range(count)]
    with pytest.raises(aio.AioRpcError) as refused:
        await import_over_the_wire(house, *users)
    assert refusal_of(refused.value) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_a_user_may_not_import(house: House) -> None:
    """Administrators and services alone bring users."""
    person, admin = await house.person(), await house.person(role=auth_pb2.ROLE_ADMIN)
    user = password_pb2.ImportedUser(email=an_address())
    with pytest.raises(aio.AioRpcError) as refused:
        await import_over_the_wire(house, user, metadata=person.metadata)
    assert refusal_of(refused.value) == (StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")
    assert (await import_over_the_wire(house, user, metadata=admin.metadata)).created == 1
    async with connect_owner(house.database_url) as owner:
        assert await owner.fetchval("SELECT count(*) FROM users WHERE email = $1", user.email) == 1


def test_hashes_and_passwords_reach_no_log() -> None:
    """The fields are marked as secrets in the contract, and their names are blanked."""
    service = password_pb2.DESCRIPTOR.services_by_name["PasswordService"]
    names = contract.sensitive_names([service])
    assert names == {"password", "current_password", "new_password", "password_hash"}
    blanked = redact(None, "", dict.fromkeys(names, "secret"))
    assert set(blanked.values()) == {"[redacted]"}
