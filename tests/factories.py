"""Ready-made people, rooms and processes; whatever a test does not name is valid."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from finity.usage.v1 import usage_pb2
from grpc import aio

from chassis.background import background
from chassis.callers import Caller, Kind
from chassis.clock import Clock
from chassis.errors import Refusal
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.limits import Limit, Limits
from chassis.postgres import Connection, Database
from chassis.revocations import Revocations
from chassis.tokens import TokenVerifier
from services.auth.domain.sessions import Means, SessionPolicy
from services.auth.domain.users import Role, User
from services.auth.passwords import Passwords
from services.auth.service.accounts import AccountService
from services.auth.service.authority import Authority
from services.auth.service.room import SECOND_FACTOR, Guesses, Room
from services.auth.service.sessions import SessionService, Tokens
from services.auth.service.signing_keys import SigningKeys
from services.auth.store import users
from services.auth.strength import Strength
from services.usage.domain.grants import Category, Grant, Terms
from services.usage.domain.metering import Event
from services.usage.service import room as usage_room
from services.usage.service.use_cases import UseCases
from services.usage.store import accounts as credit_accounts
from services.usage.store import grants as credit_grants
from tests.owner import connect_owner as connect_owner  # noqa: PLC0414 - found here by most tests
from tests.running import PASSWORD, SERVICE_KEY, refusal_of

ROOT = Path(__file__).resolve().parent.parent
ISSUER = "https://finity.test"
SEALING_SECRET = hashlib.sha256(b"signing keys of the tests").digest()
POLICY = SessionPolicy(
    access_token=timedelta(minutes=15),
    idle=timedelta(days=30),
    absolute=timedelta(days=90),
    grace=timedelta(seconds=10),
    reuse=timedelta(seconds=60),
)


# An internal service that acts.
SERVICE = Caller(Kind.SERVICE, name="test")
# How a test logs in that does not care how.
MEANS = Means(("pwd",))


def derive(purpose: str) -> bytes:
    """Keys of the tests, one a purpose, as ServiceSettings.derive makes them."""
    return hashlib.sha256(f"tests:{purpose}".encode()).digest()


# As the settings have it by default, but a first wait is none that a busy machine sits out.
GUESSES = Guesses(
    pair=Limit("pair", free=5, first=60.0, longest=900.0),
    account=Limit("account", free=20, first=60.0, longest=60.0),
    address=Limit("address", free=50, first=60.0, longest=900.0),
    second=replace(SECOND_FACTOR, first=60.0),
)
GRACE = timedelta(days=14)
REGISTRATIONS = Limit("register", free=1_000_000, first=1.0, longest=900.0)
REFRESH_KEY = derive("refresh-tokens")


@dataclass(slots=True)
class AuthRoom:
    """The auth room's parts without a server in front."""

    room: Room
    accounts: AccountService
    sessions: SessionService
    authority: Authority
    verifier: TokenVerifier
    signer: SigningKeys
    announced: list[Revocations] = field(default_factory=list)


@contextlib.asynccontextmanager
async def open_auth(
    database: Database,
    clock: Clock,
    *,
    policy: SessionPolicy = POLICY,
    time_cost: int = 1,
    memory_kib: int = 8,
    guesses: Guesses = GUESSES,
    registrations: Limit = REGISTRATIONS,
    answer_seconds: float = 0.0,
) -> AsyncIterator[AuthRoom]:
    """The auth room over a database; any number of them may share it."""
    signer = SigningKeys(database, SEALING_SECRET, ISSUER, clock)
    await signer.load()
    authority = Authority(database, clock, policy.access_token, signer)
    verifier = TokenVerifier(authority, ISSUER, clock)
    announced: list[Revocations] = []

    async def announce(revoked: Revocations) -> None:
        announced.append(revoked)
        verifier.revoke(revoked)
        authority.feed.publish(revoked)

    passwords = Passwords(memory_kib=memory_kib, time_cost=time_cost, queue=1000)
    strength = Strength()
    room = Room(
        database=database,
        clock=clock,
        passwords=passwords,
        strength=strength,
        signer=signer,
        policy=policy,
        limits=Limits(),
        guesses=guesses,
        registrations=registrations,
        deletion_grace=GRACE,
        derive=derive,
        announce=announce,
        wake_relay=lambda: None,
        answer_seconds=answer_seconds,
    )
    try:
        sessions = SessionService(room, verifier)
        yield AuthRoom(room, AccountService(room), sessions, authority, verifier, signer, announced)
    finally:
        passwords.close()
        strength.close()


@contextlib.asynccontextmanager
async def open_usage(
    database: Database,
    clock: Clock,
    *,
    signup_credits: int = 0,
    flush_events: int = 4000,
    queue_events: int = 50_000,
    thresholds: Sequence[int] = (),
) -> AsyncIterator[UseCases]:
    """The usage room with its flusher running; any number of them may share a database."""
    room = usage_room.Room(
        database=database,
        clock=clock,
        signup_credits=signup_credits,
        flush_events=flush_events,
        queue_events=queue_events,
        thresholds=thresholds,
    )
    usage = UseCases(room)
    await usage.metering.make_partitions()
    async with background(usage.metering.meter.run, usage.reservations.desk.run):
        yield usage


async def log_in(auth: AuthRoom, email: str, *, key: Key | None = None) -> tuple[Tokens, User]:
    """Opens a session with the password everybody has."""
    return await auth.sessions.login(email=email, password=PASSWORD, means=MEANS, key=key)


def an_address() -> str:
    """An address nobody has."""
    return f"{secrets.token_hex(8)}@example.com"


async def make_user(
    conn: Connection, clock: Clock, *, email: str = "", role: Role = Role.FREE
) -> User:
    """Inserts a user who cannot log in."""
    user = await users.insert_user(
        conn,
        user_id=uuid7(clock.now()),
        email=email or an_address(),
        password_hash="none",
        now=clock.now(),
    )
    if role is not Role.FREE:
        user = await users.set_role(conn, user.id, role, clock.now())
    return user


async def make_account(conn: Connection, clock: Clock, *, credits: int = 0) -> UUID:
    """Inserts a user with an open account of exactly `credits`; returns the user's id."""
    user = await make_user(conn, clock)
    now = clock.now()
    await credit_accounts.open_account(conn, user.id, now)
    if credits:
        grant = make_grant(user.id, clock, amount=credits)
        await credit_grants.insert_grant(conn, grant)
        book = await usage_room.lock_book(conn, user.id, now)
        book.add(grant, now)
        await credit_accounts.write_books(conn, [book], now)
    return user.id


def make_terms(
    *,
    source: str = "test",
    source_ref: str = "start",
    amount: int = 100,
    priority: int = 50,
    category: Category = Category.PROMOTIONAL,
    effective_at: datetime | None = None,
    expires_at: datetime | None = None,
) -> Terms:
    return Terms(source, source_ref, amount, priority, category, effective_at, expires_at)


def make_grant(user_id: UUID, clock: Clock, **terms: Any) -> Grant:
    """A grant yet to be stored; `terms` are those of make_terms."""
    asked, now = make_terms(**terms), clock.now()
    return Grant(uuid7(now), user_id, asked, asked.amount, now, asked.effective_at or now)


def make_event(
    user_id: UUID,
    at: datetime,
    *,
    event_id: UUID | None = None,
    credits: int = 1,
    tool_name: str = "search",
) -> Event:
    """An event whose time is `at`, to the millisecond its id can carry."""
    at = at.replace(microsecond=at.microsecond // 1000 * 1000)
    return Event(event_id or uuid7(at), user_id, tool_name, credits, at)


def to_wire(event: Event) -> usage_pb2.UsageEvent:
    return usage_pb2.UsageEvent(
        event_id=str(event.id),
        user_id=str(event.user_id),
        tool_name=event.tool_name,
        credits=event.credits,
    )


async def reason_of(call: Awaitable[Any]) -> str:
    """Awaits a use case; returns the reason it was refused for, "" if it was not."""
    try:
        await call
    except Refusal as refusal:
        return refusal.reason
    return ""


async def eventually(check: Callable[[], Awaitable[object]], *, seconds: float = 60) -> None:
    """Repeats a check until it holds; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            if await check():
                return
            await asyncio.sleep(0.02)


async def answers_with(call: Awaitable[object], reason: str) -> bool:
    """Tells whether a call is refused for a reason, or answered if that is ""."""
    try:
        await call
    except aio.AioRpcError as error:
        return refusal_of(error)[1] == reason
    return reason == ""


async def at_once(count: int, call: Callable[[int], Awaitable[Any]]) -> list[Any]:
    """Makes `count` calls behind one barrier; returns answers and refusals in order."""
    barrier = asyncio.Barrier(count)

    async def one(index: int) -> Any:
        await barrier.wait()
        try:
            return await call(index)
        except Refusal as refusal:
            return refusal

    return await asyncio.gather(*(one(index) for index in range(count)))


async def sooner_or_later(shows: Callable[[], Awaitable[bool]], rounds: int = 50) -> bool:
    """Tells whether what hangs on chance, as two that meet, shows in one of the rounds."""
    for _ in range(rounds):
        if await shows():
            return True
    return False


async def drop_guards(owner: Connection) -> None:
    """Lets accounts and entries be written that do not add up, for negative controls."""
    await owner.execute("DROP TRIGGER credit_accounts_balance ON credit_accounts")
    await owner.execute("DROP TRIGGER credit_entries_follow ON credit_entries")


async def ledger_faults(conn: Connection) -> Sequence[str]:
    """Names every invariant of the credit ledger that some account breaks."""
    return [name for name, query in _INVARIANTS.items() if await conn.fetchval(query)]


# Each query finds something only where its invariant is broken.
_INVARIANTS = {
    "an entry has an account": """
        SELECT true FROM credit_entries e WHERE NOT EXISTS (
        SELECT FROM credit_accounts a WHERE a.user_id = e.user_id) LIMIT 1""",
    "used + reserved = sum of what was used, held and given back": """
        SELECT true FROM credit_accounts a WHERE used + reserved <> (
        SELECT coalesce(-sum(amount), 0) FROM credit_entries e WHERE e.user_id = a.user_id
        AND kind IN ('use', 'reserve', 'commit', 'release', 'reverse')) LIMIT 1""",
    "reserved = sum of open holds": """
        SELECT true FROM credit_accounts a WHERE reserved <> (SELECT coalesce(sum(amount), 0)
        FROM credit_reservations r WHERE r.user_id = a.user_id AND state = 'open') LIMIT 1""",
    "a hold ends no sooner than its account is due": """
        SELECT true FROM credit_accounts a JOIN credit_reservations r USING (user_id)
        WHERE r.state = 'open' AND (a.due_at IS NULL OR a.due_at > r.expires_at) LIMIT 1""",
    "a hold = its draws": """
        SELECT true FROM credit_reservations r JOIN credit_entries e ON e.user_id = r.user_id
        AND e.reservation_id = r.id AND e.kind = 'reserve' WHERE -e.amount <> r.amount
        OR e.grant_ids <> r.grant_ids OR e.drawn <> r.drawn
        OR r.amount <> (SELECT sum(d) FROM unnest(r.drawn) AS d) LIMIT 1""",
    "a hold's entries = what became of it": """
        SELECT true FROM credit_reservations r WHERE (
        SELECT array_agg((e.kind, e.amount)::text ORDER BY e.version)
        FROM credit_entries e WHERE e.user_id = r.user_id AND e.reservation_id = r.id
        ) IS DISTINCT FROM array_remove(ARRAY[('reserve', -amount)::text, CASE state
        WHEN 'committed' THEN ('commit', amount - committed)::text
        WHEN 'released' THEN ('release', amount)::text
        WHEN 'expired' THEN ('release', amount)::text END], NULL) LIMIT 1""",
    "a commit = its calls": """
        SELECT true FROM credit_reservations r LEFT JOIN credit_entries e
        ON e.user_id = r.user_id AND e.reservation_id = r.id AND e.kind = 'commit'
        WHERE state = 'committed' AND committed IS DISTINCT FROM (
        SELECT coalesce(sum(credits_used), 0) FROM tool_usage u WHERE u.entry_id = e.id
        AND u.user_id = r.user_id) LIMIT 1""",
    # Months that were detached are in the rollups alone.
    "used = sum of events": """
        SELECT true FROM credit_accounts a WHERE used <> (SELECT coalesce(sum(credits_used), 0)
        FROM tool_usage u WHERE u.user_id = a.user_id) - (SELECT coalesce(sum(credits), 0)
        FROM usage_corrections c WHERE c.user_id = a.user_id AND hour >= usage_kept_from())
        + (SELECT coalesce(sum(credits), 0) FROM usage_rollups r
        WHERE r.user_id = a.user_id AND hour < usage_kept_from()) LIMIT 1""",
    "a reversal = its corrections": """
        SELECT true FROM credit_entries e WHERE kind = 'reverse' AND amount <> (
        SELECT coalesce(sum(credits), 0) FROM usage_corrections c WHERE c.reversal_id = e.id
        AND c.entry_id = e.reverses_id AND c.user_id = e.user_id) LIMIT 1""",
    "nothing gets back more than it cost": """
        SELECT true FROM usage_corrections c JOIN tool_usage u ON u.id = c.event_id
        GROUP BY c.event_id, u.credits_used HAVING sum(c.credits) > u.credits_used LIMIT 1""",
    "available = what is left of active grants - debt": """
        SELECT true FROM credit_accounts a WHERE granted - used - reserved + debt <> (
        SELECT coalesce(sum(remaining), 0) FROM credit_grants g
        WHERE g.user_id = a.user_id AND activated_at IS NOT NULL) LIMIT 1""",
    "used = sum of rollups": """
        SELECT true FROM credit_accounts a WHERE used <> (SELECT coalesce(sum(credits), 0)
        FROM usage_rollups r WHERE r.user_id = a.user_id) LIMIT 1""",
    "events = calls of rollups": """
        SELECT true FROM credit_accounts a WHERE
        (SELECT count(*) FROM tool_usage u WHERE u.user_id = a.user_id) <>
        (SELECT coalesce(sum(calls), 0) FROM usage_rollups r
        WHERE r.user_id = a.user_id AND hour >= usage_kept_from()) LIMIT 1""",
    "granted = sum of what was granted, voided and expired": """
        SELECT true FROM credit_accounts a WHERE granted <> (SELECT coalesce(sum(amount), 0)
        FROM credit_entries e WHERE e.user_id = a.user_id
        AND kind IN ('grant', 'void', 'expire', 'adjust')) LIMIT 1""",
    "a closed account has nothing left": """
        SELECT true FROM credit_accounts a JOIN credit_grants g USING (user_id)
        WHERE a.closed_at IS NOT NULL AND g.depleted_at IS NULL AND g.voided_at IS NULL LIMIT 1""",
    "remaining = amount - draws": """
        SELECT true FROM credit_grants g WHERE activated_at IS NOT NULL AND remaining <> amount - (
        SELECT coalesce(sum(d.amount), 0) FROM credit_entries e,
        unnest(e.grant_ids, e.drawn) AS d (grant_id, amount)
        WHERE e.user_id = g.user_id AND d.grant_id = g.id) LIMIT 1""",
    "a month's allowances = what was granted for it": """
        SELECT true FROM credit_accounts a WHERE allowance_granted > 0 AND allowance_granted <> (
        SELECT sum(amount) FROM credit_grants g WHERE g.user_id = a.user_id
        AND source = 'finity:allowance' AND split_part(source_ref, ':', 1) = (
        SELECT max(split_part(source_ref, ':', 1)) FROM credit_grants l
        WHERE l.user_id = a.user_id AND source = 'finity:allowance')) LIMIT 1""",
    "the own quotas are counted": """
        SELECT true FROM credit_accounts a WHERE quotas <> (
        SELECT count(*) FROM usage_quotas q WHERE q.user_id = a.user_id) LIMIT 1""",
    "the quotas of a role are counted": """
        SELECT true FROM usage_roles r WHERE quotas <> (
        SELECT count(*) FROM usage_quotas q WHERE q.role = r.role) LIMIT 1""",
    "an entry = its draws": """
        SELECT true FROM credit_entries e JOIN credit_accounts USING (user_id)
        WHERE kind IN ('use', 'adjust', 'expire', 'void') AND overdraft_limit = 0
        AND NOT EXISTS (SELECT FROM credit_entries l WHERE l.user_id = e.user_id
        AND l.kind = 'limit') AND -e.amount <> (
        SELECT coalesce(sum(d), 0) FROM unnest(e.drawn) AS d) LIMIT 1""",
    "an entry = its events": """
        SELECT true FROM credit_entries e WHERE kind = 'use'
        AND created_at >= usage_kept_from() + interval '35 days' AND -amount <> (
        SELECT coalesce(sum(credits_used), 0) FROM tool_usage u WHERE u.entry_id = e.id
        AND u.user_id = e.user_id) LIMIT 1""",
    "an event that costs has an entry": """
        SELECT true FROM tool_usage WHERE (credits_used > 0) AND entry_id IS NULL LIMIT 1""",
    "balance_after is the running sum": """
        SELECT true FROM (SELECT balance_after, sum(amount) OVER (
        PARTITION BY user_id ORDER BY version) AS running FROM credit_entries) AS chain
        WHERE balance_after <> running LIMIT 1""",
    "versions have no gap": """
        SELECT true FROM (SELECT version, row_number() OVER (
        PARTITION BY user_id ORDER BY version) AS place FROM credit_entries) AS chain
        WHERE version <> place LIMIT 1""",
    "the account has the last version": """
        SELECT true FROM credit_accounts a WHERE version <> (SELECT coalesce(max(version), 0)
        FROM credit_entries e WHERE e.user_id = a.user_id) LIMIT 1""",
}


@dataclass(slots=True)
class Process:
    """A service as its own process."""

    child: asyncio.subprocess.Process
    port: int

    async def kill(self) -> None:
        """Ends it at once, without a chance to finish anything (SIGKILL)."""
        with contextlib.suppress(ProcessLookupError):
            self.child.kill()
        await self.child.communicate()

    async def finish(self) -> tuple[int, str]:
        """Waits for its end; returns the exit code and what it wrote to stderr."""
        _, stderr = await self.child.communicate()
        assert self.child.returncode is not None
        return self.child.returncode, stderr.decode()


async def start_process(
    room: str,
    database_url: str,
    redis_url: str,
    variables: Mapping[str, str],
    *,
    port: int = 0,
) -> Process:
    """Starts `python -m services.<room>`; `variables` are of its environment."""
    environment: Mapping[str, str] = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "gen")]),
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        f"FINITY_{room.upper()}_PORT": str(port),
        "FINITY_SERVICE_KEYS": _service_keys(),
        "FINITY_SERVICE_KEY": SERVICE_KEY,
        "FINITY_ARGON2_MEMORY_KIB": "8",
        "FINITY_ARGON2_TIME_COST": "1",
        **variables,
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"services.{room}",
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    return Process(child, port)


def _service_keys() -> str:
    return f'{{"test": ["{hashlib.sha256(SERVICE_KEY.encode()).hexdigest()}"]}}'
