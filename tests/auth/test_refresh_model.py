"""
Sessions against a model: whatever is lost, repeated, stolen or late, in any order.

The model is the rule in its own words; the service runs on real PostgreSQL.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from chassis import revocations
from chassis.errors import Refusal
from chassis.idempotency import KEPT
from chassis.postgres import Connection, Database, open_database
from chassis.revocations import Revocations
from services.auth.domain.sessions import (
    EndReason,
    Session,
    SessionPolicy,
    Verdict,
    judge_reuse,
    over,
    write_refresh_token,
)
from services.auth.service import sessions as service
from services.auth.service.session_list import SessionListService
from services.auth.service.sessions import Tokens
from services.auth.store import sessions, users
from services.auth.worker import sweep
from tests.factories import (
    POLICY,
    REFRESH_KEY,
    AuthRoom,
    an_address,
    at_once,
    log_in,
    open_auth,
    reason_of,
)
from tests.fakes import FakeClock
from tests.running import PASSWORD

T = TypeVar("T")
TICK = timedelta(microseconds=1)
EXAMPLES, STEPS = 80, 40
# How long after a rotation a token so many behind the current one is good.
ALLOWED = {1: POLICY.reuse, 2: POLICY.grace}
# Hypothesis may end an example early; fewer rules than this prove too little.
LEAST = 2000
JUMPS = [
    TICK,
    timedelta(seconds=1),
    POLICY.grace,
    POLICY.grace + TICK,
    POLICY.reuse,
    POLICY.reuse + TICK,
    POLICY.access_token,
    POLICY.idle - TICK,
    POLICY.idle,
]


@dataclass(eq=False)
class Model:
    """What a session must be."""

    id: UUID
    expires: datetime
    refreshed: datetime
    counter: int = 0
    ended: str = ""
    swept: bool = False
    answers: list[Tokens] = field(default_factory=list)

    def present(self, number: int, now: datetime) -> str:
        """Presents the token of a number; returns the reason it is refused for, or ""."""
        if self.swept:
            return "REFRESH_TOKEN_INVALID"
        self._lapse(now)
        if self.ended:
            return f"SESSION_ENDED {self.ended}"
        age = now - self.refreshed
        if number > self.counter:
            return "REFRESH_TOKEN_INVALID"
        if number == self.counter:
            self.counter, self.refreshed = self.counter + 1, now
        elif age > ALLOWED.get(self.counter - number, timedelta(-1)):
            self.ended = "refresh_token_replayed"
            return "REFRESH_TOKEN_REPLAYED"
        return ""

    def over(self, now: datetime) -> str:
        """Returns why it is over, or ""; nobody need have noticed yet."""
        if self.swept:
            return "expired"
        lapsed = "idle" if now - self.refreshed >= POLICY.idle else ""
        return self.ended or ("expired" if now >= self.expires else lapsed)

    def _lapse(self, now: datetime) -> None:
        self.ended = self.over(now)


@dataclass
class Bench:
    """The room under test, and the loop it runs on."""

    runner: asyncio.Runner
    auth: AuthRoom
    database: Database
    clock: FakeClock
    email: str
    rules: int = 0
    """How many have run."""

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)


class Sessions(RuleBasedStateMachine):
    """Clients that log in, lose answers, share tokens and have them stolen."""

    sessions = Bundle[Model]("sessions")

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.models: list[Model] = []

    @initialize(target=sessions)
    def first_login(self) -> Model:
        return self.open()

    @rule(target=sessions)
    def login(self) -> Model:
        return self.open()

    @rule(session=sessions, callers=st.integers(1, 4))
    def refresh(self, session: Model, callers: int) -> None:
        """Everybody who holds the current token uses it, some at once."""
        self.present(session, session.counter, callers)

    @rule(session=sessions, callers=st.integers(1, 4))
    def retry_after_a_lost_answer(self, session: Model, callers: int) -> None:
        """A client that never saw the successor comes back with the token before."""
        self.present(session, max(session.counter - 1, 0), callers)

    @rule(session=sessions, number=st.integers(0, 6), callers=st.integers(1, 3))
    def replay(self, session: Model, number: int, callers: int) -> None:
        """Somebody uses whatever token of the session, even one not issued yet."""
        self.present(session, number, callers)

    @rule(session=sessions)
    def logout(self, session: Model) -> None:
        self.bench.run(self.bench.auth.sessions.logout(session.id, by="user"))
        session.ended = session.ended or "logout"

    @rule(session=sessions)
    def logout_while_refreshing(self, session: Model) -> None:
        """Whichever comes first, the session is over when both have answered."""
        service = self.bench.auth.sessions
        token = write_refresh_token(REFRESH_KEY, session.id, session.counter)

        async def call(index: int) -> Tokens | None:
            if index == 0:
                return await service.refresh(token)
            await service.logout(session.id, by="user")
            return None

        answer = self.bench.run(at_once(2, call))[0]
        if isinstance(answer, Tokens):
            assert session.present(session.counter, self.bench.clock.now()) == ""
            session.answers.append(answer)
        elif answer.metadata.get("end_reason") != "logout":
            assert told(answer) == session.present(session.counter, self.bench.clock.now())
        session.ended = session.ended or "logout"

    @rule(session=sessions)
    def die_between_commit_and_answer(self, session: Model) -> None:
        """The process is killed when the rotation is committed and nobody has its tokens yet."""
        service = self.bench.auth.sessions
        token = write_refresh_token(REFRESH_KEY, session.id, session.counter)
        setattr(service, "tokens", die)  # noqa: B010 - a method of this one object
        try:
            self.bench.run(service.refresh(token))
        except Refusal as refusal:
            answer = told(refusal)
        except KilledError:
            answer = ""
        finally:
            del service.tokens
        assert answer == session.present(session.counter, self.bench.clock.now())

    @rule(keeper=sessions, other=sessions)
    def refresh_while_others_are_revoked(self, keeper: Model, other: Model) -> None:
        """No refresh outlives the end of its session, whichever comes first."""
        auth, now = self.bench.auth, self.bench.clock.now()
        token = write_refresh_token(REFRESH_KEY, other.id, other.counter)
        user_id, over = keeper.answers[0].session.user_id, keeper.over(now)

        async def call(index: int) -> Tokens | int:
            if index == 0:
                return await auth.sessions.refresh(token)
            return await SessionListService(auth.room).revoke_others(
                user_id, keeper.id, actor="user"
            )

        refreshed, revoked = self.bench.run(at_once(2, call))
        refused = isinstance(revoked, Refusal)
        assert not refused or told(revoked) == f"SESSION_ENDED {over}"
        assert refused == bool(over)
        late = isinstance(refreshed, Refusal) and (
            refreshed.metadata.get("end_reason") == "revoked_by_user"
        )
        if not late or refused or other.ended:
            assert told(refreshed) == other.present(other.counter, now)
        if isinstance(refreshed, Tokens):
            other.answers.append(refreshed)
        for session in self.models:
            if not refused and session is not keeper and not session.swept:
                session.ended = session.ended or "revoked_by_user"

    @rule(
        other=sessions,
        callers=st.integers(0, 2),
        reason=st.sampled_from([EndReason.PASSWORD_RESET, EndReason.BANNED]),
    )
    def end_all_while_refreshing(self, other: Model, callers: int, reason: EndReason) -> None:
        """A reset of the password or a ban, alone or beside refreshes, leaves no session."""
        service, now = self.bench.auth.sessions, self.bench.clock.now()
        number = other.counter
        token = write_refresh_token(REFRESH_KEY, other.id, number)

        async def call(index: int) -> Tokens | None:
            if index < callers:
                return await service.refresh(token)
            await end_all(self.bench.auth, other.answers[0].session.user_id, reason, now)
            return None

        *answers, _ = self.bench.run(at_once(callers + 1, call))
        over = f"SESSION_ENDED {reason}"
        # Whoever came after the end learned of it; the others were answered as if alone.
        before = [answer for answer in answers if other.ended or told(answer) != over]
        expected = sorted(other.present(number, now) for _ in before)
        assert sorted(told(answer) for answer in before) == expected
        other.answers += [answer for answer in before if isinstance(answer, Tokens)]
        for session in self.models:
            if not session.swept:
                session.ended = session.ended or reason

    @rule(jump=st.sampled_from(JUMPS))
    def wait(self, jump: timedelta) -> None:
        self.bench.clock.advance(seconds=jump.total_seconds())

    @rule()
    def sweep(self) -> None:
        now = self.bench.clock.now()
        self.bench.run(sweep(self.bench.database, self.bench.clock))
        for session in self.models:
            session.swept = session.swept or session.expires < now - KEPT

    @invariant()
    def the_database_agrees(self) -> None:
        """Counter and end of every session are the model's; looked at after each rule."""
        self.bench.rules += 1
        rows = self.bench.run(self.stored())
        for session in self.models:
            expected = None if session.swept else (session.counter, session.ended)
            assert rows.get(session.id) == expected

    @invariant()
    def access_tokens_agree(self) -> None:
        """Each of the newest access tokens is good until its end or its session's."""
        now = self.bench.clock.now().timestamp()
        verify = self.bench.auth.verifier.verify
        for session in self.models:
            for tokens in session.answers[-3:]:
                expected = "TOKEN_REVOKED" if session.ended else ""
                if int(tokens.access_token_expires_at.timestamp()) <= now:
                    expected = "TOKEN_EXPIRED"
                assert self.bench.run(reason_of(verify(tokens.access_token))) == expected

    def open(self) -> Model:
        login = log_in(self.bench.auth, self.bench.email)
        tokens, _ = self.bench.run(login)
        now = self.bench.clock.now()
        session = Model(tokens.session.id, now + POLICY.absolute, now)
        session.answers.append(tokens)
        self.models.append(session)
        return session

    def present(self, session: Model, number: int, callers: int) -> None:
        token = write_refresh_token(REFRESH_KEY, session.id, number)
        refresh = self.bench.auth.sessions.refresh
        answers = self.bench.run(at_once(callers, lambda _: refresh(token)))
        now = self.bench.clock.now()
        expected = sorted(session.present(number, now) for _ in answers)
        assert sorted(told(answer) for answer in answers) == expected
        for answer in answers:
            if isinstance(answer, Tokens):
                assert answer.refresh_token == write_refresh_token(
                    REFRESH_KEY, session.id, session.counter
                )
                session.answers.append(answer)

    async def stored(self) -> dict[UUID, tuple[int, str]]:
        async with self.bench.database.connection() as conn:
            rows = await conn.fetch(
                "SELECT id, counter, coalesce(end_reason, '') AS ended FROM sessions"
                " WHERE id = ANY($1)",
                [session.id for session in self.models],
            )
        return {row["id"]: (row["counter"], row["ended"]) for row in rows}


class KilledError(Exception):
    """The process was killed."""


def die(*_: Any) -> None:
    raise KilledError


async def end_all(auth: AuthRoom, user_id: UUID, reason: EndReason, now: datetime) -> None:
    """Ends what a user has open, as a reset of the password and a ban do."""
    async with auth.room.database.transaction() as conn:
        await users.lock_user(conn, user_id)
        ended = await sessions.end_sessions(conn, user_id, reason=reason, by="system", now=now)
        version = await users.revoke_tokens(conn, user_id, now)
    await auth.room.announce(Revocations(ended, [(user_id, version)]))


def told(answer: Tokens | Refusal) -> str:
    """Returns what a caller learned: "", or the reason with the end it names."""
    if isinstance(answer, Tokens):
        return ""
    return " ".join([answer.reason, *answer.metadata.values()])


@contextlib.asynccontextmanager
async def open_bench(runner: asyncio.Runner, database_url: str, clock: FakeClock) -> Any:
    async with (
        open_database(database_url, role="finity_auth", application="test") as database,
        open_auth(database, clock) as auth,
    ):
        email = an_address()
        await auth.accounts.register(email=email, password=PASSWORD, key=None)
        yield Bench(runner, auth, database, clock, email)


@pytest.fixture
def bench(database_url: str, clock: FakeClock) -> Any:
    with asyncio.Runner() as runner:
        opened = open_bench(runner, database_url, clock)
        yield runner.run(opened.__aenter__())
        runner.run(opened.__aexit__(None, None, None))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes longer than a list that nobody polls stays fresh."""
    monkeypatch.setattr(revocations, "STALE_SECONDS", 3600.0)


def run_model(bench: Bench, **chosen: Any) -> None:
    run_state_machine_as_test(
        lambda: Sessions(bench),  # type: ignore[arg-type]
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            database=None,
            suppress_health_check=list(HealthCheck),
            **chosen,
        ),
    )


def fails(bench: Bench) -> None:
    """Asserts that the model objects, without looking for the shortest way to make it."""
    with pytest.raises((AssertionError, FlakyFailure)) as raised:
        run_model(bench, derandomize=True, report_multiple_bugs=False, phases=[Phase.generate])
    # Callers at once need not meet in the same way again: Hypothesis calls that flaky.
    if isinstance(raised.value, FlakyFailure):
        assert all(isinstance(error, AssertionError) for error in raised.value.exceptions)
    assert bench.rules < LEAST


def test_sessions_obey_the_model(bench: Bench) -> None:
    """No false logout, no surviving stolen token, no fork, over thousands of rules."""
    run_model(bench)
    assert bench.rules >= LEAST


def test_a_forgiven_replay_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: where a stolen token gets the successor, the model fails."""

    def forgiving(*args: Any) -> Verdict:
        verdict = judge_reuse(*args)
        return Verdict.SUCCESSOR if verdict is Verdict.REPLAYED else verdict

    monkeypatch.setattr(service, "judge_reuse", forgiving)
    fails(bench)


def test_a_grace_for_every_token_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: where a token of long ago gets the successor in the grace, it fails."""

    def lax(session: Session, presented: int, policy: SessionPolicy, now: datetime) -> Verdict:
        old = presented < session.counter and now - session.refreshed_at <= policy.grace
        alive = over(session, policy, now) is None
        return Verdict.SUCCESSOR if old and alive else judge_reuse(session, presented, policy, now)

    monkeypatch.setattr(service, "judge_reuse", lax)
    fails(bench)


def test_a_rotation_of_any_number_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: where every token of a session rotates it, the model fails."""
    rotate = sessions.rotate_session

    async def careless(
        conn: Connection, *, session_id: UUID, counter: int, **rest: Any
    ) -> Session | None:
        found = await sessions.get_session(conn, session_id)
        current = found.counter if found else counter
        return await rotate(conn, session_id=session_id, counter=current, **rest)

    monkeypatch.setattr(sessions, "rotate_session", careless)
    fails(bench)
