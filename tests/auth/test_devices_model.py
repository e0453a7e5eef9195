"""
Device logins against a model: whoever polls, approves, denies or comes late, in any order.

The model is RFC 8628 in its own words; the service runs on real PostgreSQL.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from chassis.callers import Caller
from chassis.postgres import Database, open_database
from services.auth.domain.devices import LIFETIME, DevicePolicy
from services.auth.domain.sessions import EndReason
from services.auth.service.devices import DeviceService, Started
from services.auth.store import sessions as store_sessions
from services.auth.store import users as store_users
from tests.factories import AuthRoom, an_address, at_once, log_in, open_auth, reason_of
from tests.fakes import FakeClock
from tests.running import PASSWORD

T = TypeVar("T")
TICK = timedelta(microseconds=1)
EXAMPLES, STEPS = 30, 30
PEOPLE = 2
HOME = "192.0.2.1"
JUMPS = [
    TICK,
    timedelta(seconds=5) - TICK,
    timedelta(seconds=5),
    timedelta(seconds=10),
    timedelta(seconds=30),
    timedelta(minutes=2),
    LIFETIME - TICK,
    LIFETIME,
]


@dataclass(eq=False)
class Person:
    """Somebody who approves: logged in, and now and then thrown out of every session."""

    email: str
    caller: Caller
    resets: int = 0


@dataclass(eq=False)
class Model:
    """What a login must be."""

    started: Started
    expires: datetime
    interval: timedelta = timedelta(seconds=5)
    polled: datetime | None = None
    denied: bool = False
    claimed: bool = False
    opened: bool = False
    """A claim that is denied opens nothing and uses the code up all the same."""
    approver: Person | None = None
    resets: int = 0
    """Of the approver, when it approved: an approval does not outlive a reset."""

    def pending(self, now: datetime) -> bool:
        return not self.denied and self.approver is None and now < self.expires

    def poll(self, now: datetime) -> str:
        """Returns the reason a poll is refused for, "" if it opens the session."""
        if self.claimed:
            return "DEVICE_CODE_INVALID"
        if self.denied:
            return "DEVICE_DENIED"
        if now >= self.expires:
            return "DEVICE_CODE_EXPIRED"
        if self.polled is not None and now < self.polled + self.interval:
            self.interval += timedelta(seconds=5)
            self.polled = now
            return "SLOW_DOWN"
        self.polled = now
        if self.approver is None:
            return "AUTHORIZATION_PENDING"
        self.claimed = True
        self.opened = self.approver.resets == self.resets
        return "" if self.opened else "DEVICE_DENIED"

    def approve(self, who: Person, now: datetime) -> str:
        if self.pending(now):
            self.approver, self.resets = who, who.resets
            return ""
        again = self.approver is who and now < self.expires
        return "" if again else "USER_CODE_INVALID"

    def deny(self, now: datetime) -> str:
        if self.approver is not None or now >= self.expires:
            return "USER_CODE_INVALID"
        self.denied = True
        return ""


@dataclass
class Bench:
    """The room under test, and the loop it runs on."""

    runner: asyncio.Runner
    auth: AuthRoom
    devices: DeviceService
    database: Database
    clock: FakeClock
    people: list[Person] = field(default_factory=list)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    async def log_in(self, email: str) -> Caller:
        tokens, _ = await log_in(self.auth, email)
        return await self.auth.verifier.verify(tokens.access_token)

    async def forgive(self, who: Person) -> None:
        """Wrong codes have tests of their own; here nobody is held off for them."""
        assert who.caller.user_id is not None
        await self.auth.room.limits.forget(*self.devices._tries(who.caller.user_id, HOME))


class Logins(RuleBasedStateMachine):
    """Devices that poll at whatever time, and people who approve, deny or lose their sessions."""

    logins = Bundle[Model]("logins")

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.models: list[Model] = []
        for person in bench.people:
            person.caller = bench.run(bench.log_in(person.email))

    @initialize(target=logins)
    def first(self) -> Model:
        return self.open()

    @rule(target=logins)
    def start(self) -> Model:
        return self.open()

    @rule(login=logins, callers=st.integers(1, 4))
    def poll(self, login: Model, callers: int) -> None:
        """A device polls, perhaps from several places at once."""
        expected = sorted(login.poll(self.now) for _ in range(callers))
        code = login.started.device_code

        async def call(_: int) -> str:
            return await reason_of(self.bench.devices.poll(code, address=HOME))

        assert sorted(self.bench.run(at_once(callers, call))) == expected

    @rule(login=logins, off=st.sampled_from([-TICK, timedelta(), TICK]))
    def poll_in_time(self, login: Model, off: timedelta) -> None:
        """A device waits for its interval after a poll, a tick less or a tick more."""
        self.poll(login, 1)
        self.wait(login.interval + off)
        self.poll(login, 1)

    @rule(login=logins, who=st.integers(0, PEOPLE - 1))
    def approve(self, login: Model, who: int) -> None:
        person = self.bench.people[who]
        assert self.answer("approve", login, person) == login.approve(person, self.now)

    @rule(login=logins)
    def both_approve(self, login: Model) -> None:
        """Two people approve at once: one wins, unless it was decided before."""
        people, now = self.bench.people, self.now
        decided = not login.pending(now)
        answers = self.bench.run(at_once(PEOPLE, lambda who: self.ask("approve", login, who)))
        if not decided:
            assert sorted(answers) == ["", "USER_CODE_INVALID"]
            login.approve(people[answers.index("")], now)
        assert answers == [login.approve(person, now) for person in people]

    @rule(login=logins, who=st.integers(0, PEOPLE - 1))
    def deny(self, login: Model, who: int) -> None:
        assert self.answer("deny", login, self.bench.people[who]) == login.deny(self.now)

    @rule(login=logins, who=st.integers(0, PEOPLE - 1))
    def inspect(self, login: Model, who: int) -> None:
        expected = "" if login.pending(self.now) else "USER_CODE_INVALID"
        assert self.answer("inspect", login, self.bench.people[who]) == expected

    @rule(who=st.integers(0, PEOPLE - 1))
    def reset(self, who: int) -> None:
        """Somebody's password is reset: every session is taken away, and a new one opened."""
        person = self.bench.people[who]
        self.bench.run(self.take_away(person))
        person.resets += 1
        person.caller = self.bench.run(self.bench.log_in(person.email))

    @rule(jump=st.sampled_from(JUMPS))
    def wait(self, jump: timedelta) -> None:
        self.bench.clock.advance(seconds=jump.total_seconds())

    @invariant()
    def the_database_agrees(self) -> None:
        """State and interval of every login, and the sessions it opened, are the model's."""
        assert self.bench.run(self.stored()) == {
            login.started.login.id: (
                login.denied,
                login.claimed,
                login.approver and login.approver.caller.user_id,
                login.interval.total_seconds(),
                int(login.opened),
            )
            for login in self.models
        }

    @property
    def now(self) -> datetime:
        return self.bench.clock.now()

    def open(self) -> Model:
        # Examples share the database: the name says whose session it is.
        name = f"Device {uuid4()}"
        started = self.bench.run(self.bench.devices.start(client_name=name, address=HOME))
        login = Model(started, self.now + LIFETIME)
        self.models.append(login)
        return login

    def answer(self, method: str, login: Model, who: Person) -> str:
        return self.bench.run(self.ask(method, login, self.bench.people.index(who)))

    async def ask(self, method: str, login: Model, who: int) -> str:
        person = self.bench.people[who]
        call = getattr(self.bench.devices, method)
        code = login.started.user_code
        # Whoever approves proves again who is there: how fresh that must be has tests of its own.
        caller = replace(person.caller, auth_time=self.now)
        reason = await reason_of(call(caller=caller, user_code=code, address=HOME))
        await self.bench.forgive(person)
        return reason

    async def take_away(self, person: Person) -> None:
        assert person.caller.user_id is not None
        async with self.bench.database.transaction() as conn:
            await store_users.revoke_tokens(conn, person.caller.user_id, self.now)
            await store_sessions.end_sessions(
                conn,
                person.caller.user_id,
                reason=EndReason.PASSWORD_RESET,
                by="user",
                now=self.now,
            )

    async def stored(self) -> dict[Any, tuple[Any, ...]]:
        async with self.bench.database.connection() as conn:
            rows = await conn.fetch(
                "SELECT id, denied_at IS NOT NULL, claimed_at IS NOT NULL, user_id,"
                " interval_seconds, (SELECT count(*) FROM sessions WHERE device = client_name)"
                " FROM chrome_auth_links WHERE id = ANY($1)",
                [login.started.login.id for login in self.models],
            )
        return {row[0]: tuple(row)[1:] for row in rows}


@contextlib.asynccontextmanager
async def open_bench(runner: asyncio.Runner, database_url: str, clock: FakeClock) -> Any:
    async with (
        open_database(database_url, role="finity_auth", application="test") as database,
        open_auth(database, clock) as auth,
    ):
        room = replace(auth.room, devices=DevicePolicy(codes_per_address=1_000_000))
        bench = Bench(runner, auth, DeviceService(room, auth.sessions), database, clock)
        for _ in range(PEOPLE):
            email = an_address()
            await auth.accounts.register(email=email, password=PASSWORD, key=None)
            bench.people.append(Person(email, await bench.log_in(email)))
        yield bench


@pytest.fixture
def bench(database_url: str, clock: FakeClock) -> Any:
    with asyncio.Runner() as runner:
        opened = open_bench(runner, database_url, clock)
        yield runner.run(opened.__aenter__())
        runner.run(opened.__aexit__(None, None, None))


def test_device_logins_obey_the_model(bench: Bench) -> None:
    """No second session, no approval that outlives its session, over thousands of steps."""
    run_machine(
        lambda: Logins(bench),  # type: ignore[arg-type]
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
