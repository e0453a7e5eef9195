"""Mails and registrations: by the time of an answer nobody learns whether there is an account."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import combinations, repeat
from typing import Any

import pytest

from chassis.limits import Limit
from chassis.postgres import Connection, Database
from services.auth.domain.users import User
from services.auth.service import accounts
from services.auth.service import emails as service
from services.auth.service.emails import EmailService
from services.auth.service.room import ANSWER_SECONDS, Guesses
from tests.auth.timing import APART, SAMPLES, times, told_apart
from tests.factories import AuthRoom, an_address, make_user, open_auth, reason_of
from tests.fakes import FakeClock
from tests.running import PASSWORD

LOOSE = Limit("loose", free=1_000_000, first=1.0, longest=1.0)
WAYS = ["request_reset", "request_sign_in"]
# Calls that get connections and caches warm before anything is measured.
WARM = 5


@pytest.fixture
async def auth(auth_database: Database, clock: FakeClock) -> AsyncIterator[AuthRoom]:
    """The auth room, which mails to as many people as a caller likes."""
    async with open_auth(
        auth_database,
        clock,
        guesses=Guesses(LOOSE, LOOSE, LOOSE),
        answer_seconds=ANSWER_SECONDS,
    ) as room:
        yield room


async def addresses(owner: Connection, clock: FakeClock) -> dict[str, Iterator[str]]:
    """Returns addresses of each kind, another one for each call: one address has to pause."""
    known = [(await make_user(owner, clock)).email for _ in range(SAMPLES)]
    banned = [(await make_user(owner, clock)).email for _ in range(SAMPLES)]
    await owner.execute(
        "UPDATE users SET banned_at = now(), ban_reason = 'test' WHERE email = ANY($1)", banned
    )
    # What so many new rows leave to do must not fall into a sample.
    await owner.execute("VACUUM ANALYZE users")
    unknown = [an_address() for _ in range(SAMPLES)]
    return {"known": iter(known), "unknown": iter(unknown), "banned": iter(banned)}


async def ask(
    emails: EmailService, way: str, owner: Connection, clock: FakeClock
) -> dict[str, list[float]]:
    """Returns the seconds that each kind of address takes."""
    request = getattr(emails, way)
    for _ in range(WARM):
        await request(email=an_address(), address=None)
        await request(email=(await make_user(owner, clock)).email, address=None)
    return await times(
        lambda email: request(email=email, address=None), await addresses(owner, clock)
    )


@pytest.mark.parametrize("way", WAYS)
async def test_requests_take_the_same_time(
    emails: EmailService, owner: Connection, clock: FakeClock, way: str
) -> None:
    """Known, unknown or banned: only the one with an account in order is written to."""
    taken = await ask(emails, way, owner, clock)
    assert await owner.fetchval("SELECT count(*) FROM auth_outbox") == SAMPLES + WARM
    for one, other in combinations(taken, 2):
        assert told_apart(taken[one], taken[other]) < APART, (one, other)


async def test_an_answer_as_soon_as_it_is_written_would_be_told(
    auth: AuthRoom,
    emails: EmailService,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: answered at once, with nothing written for nobody, an address is told."""
    send = getattr(service, "_send")  # noqa: B009 - what pretends to mail to nobody

    async def hurried(*args: Any, **named: Any) -> None:
        if any(isinstance(arg, User) for arg in args):
            # As slow as mail would be that is sent at once.
            await asyncio.sleep(0.02)
            await send(*args, **named)

    monkeypatch.setattr(service, "_send", hurried)
    object.__setattr__(auth.room, "answer_seconds", 0.0)
    taken = await ask(emails, "request_reset", owner, clock)
    assert told_apart(taken["known"], taken["unknown"]) > 0.25


async def register(auth: AuthRoom) -> dict[str, list[float]]:
    """Returns the seconds that registering a taken and a free address takes."""

    async def one(email: str) -> str:
        call = auth.accounts.register(email=email, password=PASSWORD, key=None)
        return await reason_of(call)

    taken = an_address()
    await one(taken)
    for _ in range(WARM):
        assert await one(taken) == "EMAIL_ALREADY_TAKEN"
        assert await one(an_address()) == ""
    return await times(one, {"taken": repeat(taken), "free": iter(an_address, "")})


async def test_registrations_take_the_same_time(auth: AuthRoom) -> None:
    """Whoever hides the answer from people, as a deployment may, is not betrayed by its time."""
    measured = await register(auth)
    assert told_apart(measured["taken"], measured["free"]) < APART


async def test_a_registration_answered_at_once_would_be_told(
    auth: AuthRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: refused as soon as it is known, a taken address is told by its time."""
    write = service.send_verification

    async def slowly(*args: Any) -> Any:
        # On a machine whose noise would hide what a fast database takes to write.
        await asyncio.sleep(0.015)
        return await write(*args)

    monkeypatch.setattr(accounts, "send_verification", slowly)
    object.__setattr__(auth.room, "answer_seconds", 0.0)
    measured = await register(auth)
    assert told_apart(measured["taken"], measured["free"]) > 0.25
