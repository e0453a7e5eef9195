"""Passwords: argon2id in a bounded number of processes."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from argon2 import extract_parameters
from argon2.low_level import Type
from finity.auth.v1 import auth_pb2

from chassis.callers import PUBLIC
from chassis.calls import Call, enter
from chassis.contract import methods_of
from chassis.server import StartupError
from services.auth.config import Settings
from services.auth.errors import HashingBusy
from services.auth.passwords import Passwords
from tests.auth.hashed import spied
from tests.auth.pieces import Gate
from tests.factories import at_once, reason_of

LOGIN = methods_of([auth_pb2.DESCRIPTOR.services_by_name["AuthService"]])[
    "/finity.auth.v1.AuthService/Login"
]


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    """A pool that hashes fast and lets two wait."""
    pool = Passwords(memory_kib=8, time_cost=1, queue=2)
    yield pool
    pool.close()


async def test_a_password_fits_its_own_hash_only(passwords: Passwords) -> None:
    """A hash verifies its password, letter for letter, and is salted."""
    hashed = await passwords.hash("correct horse")
    assert await passwords.verify("correct horse", hashed)
    assert not await passwords.verify("Correct horse", hashed)
    assert not await passwords.verify("", hashed)
    assert await passwords.hash("correct horse") != hashed


@pytest.mark.parametrize("hashed", ["", "none", "$argon2id$", "$2b$12$abcdefghijklmnopqrstuv"])
async def test_what_is_no_hash_fits_nothing(passwords: Passwords, hashed: str) -> None:
    """A damaged or foreign hash is a wrong password, not an error; the dummy's password too."""
    assert not await passwords.verify("correct horse", hashed)
    assert not await passwords.verify("no account has this password", hashed)


async def test_the_parameters_are_owasps() -> None:
    """By default a hash is argon2id with 7 MiB, 5 passes and 1 lane."""
    settings = Settings()
    pool = Passwords(
        memory_kib=settings.argon2_memory_kib,
        time_cost=settings.argon2_time_cost,
        queue=settings.argon2_queue,
    )
    hashed = await pool.hash("correct horse")
    used = extract_parameters(hashed)
    assert (used.type, used.memory_cost, used.time_cost, used.parallelism) == (Type.ID, 7168, 5, 1)
    assert (used.salt_len, used.hash_len) == (16, 32)
    assert not pool.outdated(hashed)
    pool.close()


async def test_other_parameters_are_outdated(passwords: Passwords) -> None:
    """A hash is outdated when today's parameters are others."""
    stricter = Passwords(memory_kib=8, time_cost=2, queue=2)
    assert stricter.outdated(await passwords.hash("correct horse"))
    stricter.close()


async def test_no_hash_costs_what_a_hash_costs(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An absent hash is verified all the same, with today's parameters, and never fits."""
    verified = spied(passwords, monkeypatch)
    assert not await passwords.verify("no account has this password", None)
    assert len(verified) == 1
    assert not passwords.outdated(verified[0])


async def test_hashing_leaves_the_process(passwords: Passwords) -> None:
    """Once they are ready, the processes that hash are there, and this one is none of them."""
    await passwords.ready()
    there = await passwords._run(os.getpid)
    assert there != os.getpid()
    await passwords.hash("correct horse")
    assert await passwords._run(os.getpid) == there


async def test_no_service_starts_that_cannot_hash(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its processes it says so at the start, in a sentence."""
    monkeypatch.setattr("services.auth.processes._COMMAND", ("/nowhere/python",))
    with pytest.raises(StartupError, match="cannot be started"):
        await passwords.ready()


async def test_too_many_are_refused(passwords: Passwords, tmp_path: Path) -> None:
    """More than may wait are HASHING_BUSY at once, with a delay; then there is room again."""
    gate = Gate(tmp_path)
    held = [asyncio.create_task(passwords._run(gate.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    refusals = await at_once(10, lambda _: passwords.hash("correct horse"))
    assert all(isinstance(refusal, HashingBusy) for refusal in refusals)
    assert all(refusal.retry_after > 0 for refusal in refusals)
    gate.open()
    await asyncio.gather(*held)
    assert await passwords.verify("correct horse", await passwords.hash("correct horse"))


async def test_what_cannot_be_ready_in_time_is_not_begun(passwords: Passwords) -> None:
    """A call whose deadline is nearer than a hash takes is HASHING_BUSY before any work."""
    passwords._seconds = 5.0

    async def within(seconds: float) -> str:
        enter(Call(LOGIN, "test", PUBLIC, time.monotonic() + seconds))
        return await reason_of(passwords.hash("correct horse"))

    # Each in a task of its own: the current call is the task's.
    assert await asyncio.create_task(within(4.0)) == "HASHING_BUSY"
    assert all(child._process is None for child in passwords._children)
    assert await asyncio.create_task(within(60.0)) == ""
