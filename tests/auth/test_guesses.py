"""Guessing passwords: how often, and whether the answer or its time tells anything."""

from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import combinations, repeat
from typing import Any

import pytest

from chassis.limits import Limit
from chassis.postgres import Connection, Database
from services.auth.domain.sessions import Means
from services.auth.errors import LoginFailed
from services.auth.passwords import Passwords
from services.auth.service.attempts import Attempts, network
from services.auth.service.room import Guesses
from tests.auth.timing import APART, times, told_apart
from tests.factories import MEANS, AuthRoom, an_address, at_once, log_in, open_auth, reason_of
from tests.fakes import FakeClock
from tests.running import PASSWORD

WRONG = "wrong horse battery"
STRICT = Limit("strict", free=3, first=60.0, longest=60.0)
LOOSE = Limit("loose", free=1_000_000, first=1.0, longest=1.0)


def guesses(**limits: Limit) -> Guesses:
    return Guesses(**{"pair": LOOSE, "account": LOOSE, "address": LOOSE, **limits})


@pytest.fixture
async def generous(auth_database: Database, clock: FakeClock) -> AsyncIterator[AuthRoom]:
    """The room with a hash that outweighs the rest of a login, and any number of guesses."""
    async with open_auth(
        auth_database, clock, time_cost=2, memory_kib=1024, guesses=guesses()
    ) as room:
        yield room


async def guess(auth: AuthRoom, email: str, password: str = WRONG, means: Means = MEANS) -> str:
    """Returns the reason a login is refused for, "" if it is not."""
    return await reason_of(
        auth.sessions.login(email=email, password=password, means=means, key=None)
    )


def at(address: str) -> Means:
    return Means(("pwd",), address=address)


async def registered(auth: AuthRoom) -> str:
    email = an_address()
    await auth.accounts.register(email=email, password=PASSWORD, key=None)
    return email


@pytest.mark.parametrize(
    ("kind", "same_account", "same_address"),
    [("pair", True, True), ("account", True, False), ("address", False, True)],
)
async def test_each_kind_of_guess_is_slowed_down(
    auth_database: Database, clock: FakeClock, kind: str, same_account: bool, same_address: bool
) -> None:
    """One account from one address, from many, and many accounts from one: each has its limit."""
    async with open_auth(auth_database, clock, guesses=guesses(**{kind: STRICT})) as auth:
        victim = await registered(auth)
        for number in range(STRICT.free + 1):
            email = victim if same_account else an_address()
            where = at("192.0.2.1" if same_address else f"192.0.2.{number}")
            assert await guess(auth, email, means=where) == "LOGIN_FAILED"
        email = victim if same_account else await registered(auth)
        where = at("192.0.2.1" if same_address else "192.0.2.99")
        assert await guess(auth, email, PASSWORD, means=where) == "TOO_MANY_ATTEMPTS"


async def test_one_address_does_not_register_everybody(
    auth_database: Database, clock: FakeClock
) -> None:
    """After so many registrations a further one from there has to wait; elsewhere none has."""
    async with open_auth(auth_database, clock, registrations=STRICT) as auth:

        async def register(address: str) -> str:
            return await reason_of(
                auth.accounts.register(
                    email=an_address(), password=PASSWORD, key=None, address=address
                )
            )

        answers = [await register("192.0.2.1") for _ in range(STRICT.free + 2)]
        assert answers == [""] * (STRICT.free + 1) + ["TOO_MANY_ATTEMPTS"]
        assert await register("192.0.2.2") == ""


async def test_registrations_are_held_off_whatever_they_were_answered(
    auth_database: Database, clock: FakeClock
) -> None:
    """Asking by it who has an account ends as soon: a taken address counts as a free one."""
    async with open_auth(auth_database, clock, registrations=STRICT) as auth:
        taken = await registered(auth)

        async def register(email: str, number: int = 1) -> str:
            address = f"2001:db8:1:2::{number}"
            call = auth.accounts.register(email=email, password=PASSWORD, key=None, address=address)
            return await reason_of(call)

        for number in range(STRICT.free + 1):
            asked, answer = [(taken, "EMAIL_ALREADY_TAKEN"), (an_address(), "")][number % 2]
            assert await register(asked, number) == answer
        assert await register(taken, 99) == "TOO_MANY_ATTEMPTS"
        assert await register(an_address(), 99) == "TOO_MANY_ATTEMPTS"


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        (None, "unknown"),
    ],
)
def test_an_address_counts_as_one_customer_s_network(address: str | None, counted: str) -> None:
    """Whoever has an IPv6 address has 2**64 of them; they count as one."""
    assert network(address) == counted


async def test_who_gets_in_starts_anew(auth_database: Database, clock: FakeClock) -> None:
    """A right password forgives the wrong ones of its pair before it."""
    async with open_auth(auth_database, clock, guesses=guesses(pair=STRICT)) as auth:
        email = await registered(auth)
        for _ in range(3):
            for _ in range(STRICT.free):
                assert await guess(auth, email) == "LOGIN_FAILED"
            assert await guess(auth, email, PASSWORD) == ""


async def fifty_guesses(auth: AuthRoom) -> list[Any]:
    """Guesses one account's password fifty times at once; only the middle one is right."""
    email = await registered(auth)

    async def one(index: int) -> Any:
        password = PASSWORD if index == 25 else f"{WRONG} {index}"
        return await auth.sessions.login(email=email, password=password, means=MEANS, key=None)

    return await at_once(50, one)


async def test_guesses_at_once_count_like_guesses_in_turn(
    auth_database: Database, clock: FakeClock
) -> None:
    """Of many guesses sent before the first is answered, the right one gets nobody in."""
    async with open_auth(auth_database, clock, guesses=guesses(account=STRICT)) as auth:
        for _ in range(5):
            assert not any(isinstance(answer, tuple) for answer in await fifty_guesses(auth))


async def test_a_look_before_the_hash_alone_lets_one_in(
    auth_database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the second look the same race opens a session."""

    async def trusting(*_: object) -> None:
        """Asks nobody."""

    monkeypatch.setattr(Attempts, "succeeded", trusting)
    async with open_auth(auth_database, clock, guesses=guesses(account=STRICT)) as auth:
        answers = [answer for _ in range(5) for answer in await fifty_guesses(auth)]
    assert any(isinstance(answer, tuple) for answer in answers)
    assert any(isinstance(answer, LoginFailed) for answer in answers)


async def kinds_of_failure(auth: AuthRoom, owner: Connection) -> dict[str, str]:
    """Returns an address for each way a wrong password can be wrong."""
    names = ("active", "banned", "unverified", "verified", "no password")
    emails = {name: await registered(auth) for name in names}
    change = "UPDATE users SET {} WHERE email = $1".format
    ban = change("banned_at = now(), ban_reason = 'test'")
    await owner.execute(ban, emails["banned"])
    await owner.execute(change("email_verified_at = now()"), emails["verified"])
    await owner.execute(change("password_hash = NULL"), emails["no password"])
    return {**emails, "unknown": an_address()}


async def test_failures_say_the_same(generous: AuthRoom, owner: Connection) -> None:
    """Unknown, unverified, banned, without a password: one answer, even to the right one."""
    kinds = await kinds_of_failure(generous, owner)
    assert {await guess(generous, email) for email in kinds.values()} == {"LOGIN_FAILED"}
    assert await guess(generous, kinds["banned"], PASSWORD) == "LOGIN_FAILED"
    assert await guess(generous, kinds["unverified"], PASSWORD) == ""


def again_and_again(emails: Mapping[str, str]) -> dict[str, Iterator[str]]:
    """Returns each kind's one address as often as it is asked for."""
    return {name: repeat(email) for name, email in emails.items()}


async def test_failures_take_the_same_time(generous: AuthRoom, owner: Connection) -> None:
    """By the time of its answer nobody can tell one kind of failed login from another."""
    kinds = await kinds_of_failure(generous, owner)
    taken = await times(lambda email: guess(generous, email), again_and_again(kinds))
    for one, other in combinations(taken, 2):
        assert told_apart(taken[one], taken[other]) < APART, (one, other)


async def test_no_hash_for_nobody_would_be_told(
    generous: AuthRoom, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: where an unknown address costs no hash, the same test tells it apart."""
    verify = Passwords.verify

    async def hurried(self: Passwords, password: str, hashed: str | None) -> bool:
        return hashed is not None and await verify(self, password, hashed)

    monkeypatch.setattr(Passwords, "verify", hurried)
    kinds = await kinds_of_failure(generous, owner)
    chosen = {name: kinds[name] for name in ("active", "unknown")}
    taken = await times(lambda email: guess(generous, email), again_and_again(chosen))
    assert told_apart(taken["active"], taken["unknown"]) > 0.4


async def test_a_session_is_opened_by_the_right_one(generous: AuthRoom) -> None:
    """The room these tests measure lets people in at all."""
    tokens, _ = await log_in(generous, await registered(generous))
    assert tokens.access_token
