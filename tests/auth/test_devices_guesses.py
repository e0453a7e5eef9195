"""User codes of devices may be guessed five times, from one address or by one user."""

import asyncio
from typing import Any

import pytest

from chassis.callers import Caller
from chassis.errors import Code, Refusal
from chassis.postgres import Connection
from services.auth.service.devices import DeviceService, Started
from tests.chassis.waiting import until
from tests.factories import AuthRoom, an_address, at_once, log_in, reason_of
from tests.running import PASSWORD

HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"
WRONG = "BBBB-BBBB"


@pytest.fixture
def devices(auth: AuthRoom) -> DeviceService:
    return DeviceService(auth.room, auth.sessions)


async def somebody(auth: AuthRoom) -> Caller:
    email = an_address()
    await auth.accounts.register(email=email, password=PASSWORD, key=None)
    tokens, _ = await log_in(auth, email)
    return await auth.verifier.verify(tokens.access_token)


async def start(devices: DeviceService) -> Started:
    return await devices.start(client_name="Editor", address="203.0.113.1")


async def guess(devices: DeviceService, who: Caller, code: str, address: str = HOME) -> str:
    """Inspects a code; returns the reason it was refused for, or ""."""
    return await reason_of(devices.inspect(caller=who, user_code=code, address=address))


@pytest.mark.parametrize("way", ["inspect", "approve", "deny"])
async def test_after_five_wrong_codes_it_stops(
    auth: AuthRoom, devices: DeviceService, way: str
) -> None:
    """The sixth guess of a user or an address waits ten minutes, the right one too."""
    ada, bob = await somebody(auth), await somebody(auth)
    started = await start(devices)
    call = getattr(devices, way)
    for _ in range(5):
        with pytest.raises(Refusal) as wrong:
            await call(caller=ada, user_code=WRONG, address=HOME)
        assert (wrong.value.code, wrong.value.reason) == (Code.NOT_FOUND, "USER_CODE_INVALID")
    for who, address in ((ada, HOME), (ada, ELSEWHERE), (bob, HOME)):
        for code in (WRONG, started.user_code):
            with pytest.raises(Refusal) as stopped:
                await call(caller=who, user_code=code, address=address)
            assert (stopped.value.code, stopped.value.reason) == (
                Code.RESOURCE_EXHAUSTED,
                "TOO_MANY_ATTEMPTS",
            )
            assert stopped.value.retry_after is not None
            assert 500 < stopped.value.retry_after <= 600
    await call(caller=bob, user_code=started.user_code, address=ELSEWHERE)


async def test_an_approval_forgives_its_user(auth: AuthRoom, devices: DeviceService) -> None:
    """A right code takes back a user's wrong ones, once a code; an address keeps its own."""
    ada = await somebody(auth)
    started = await start(devices)

    async def approve(address: str) -> str:
        call = devices.approve(caller=ada, user_code=started.user_code, address=address)
        return await reason_of(call)

    for number in range(4):
        assert await guess(devices, ada, WRONG, f"192.0.2.{number}") == "USER_CODE_INVALID"
    assert await approve(HOME) == ""
    for number in range(10, 14):
        assert await guess(devices, ada, WRONG, f"192.0.2.{number}") == "USER_CODE_INVALID"
    assert await approve(HOME) == ""
    assert await guess(devices, ada, WRONG, "192.0.2.20") == "USER_CODE_INVALID"
    assert await guess(devices, ada, WRONG, "192.0.2.21") == "TOO_MANY_ATTEMPTS"

    bob = await somebody(auth)
    other = await start(devices)
    for _ in range(4):
        assert await guess(devices, bob, WRONG, ELSEWHERE) == "USER_CODE_INVALID"
    await devices.approve(caller=bob, user_code=other.user_code, address=ELSEWHERE)
    assert await guess(devices, bob, WRONG, ELSEWHERE) == "USER_CODE_INVALID"
    assert await guess(devices, bob, WRONG, ELSEWHERE) == "TOO_MANY_ATTEMPTS"


async def fifty_guesses(auth: AuthRoom, devices: DeviceService) -> list[Any]:
    ada = await somebody(auth)
    return await at_once(50, lambda _: guess(devices, ada, WRONG))


async def test_fifty_guesses_at_once_are_five(auth: AuthRoom, devices: DeviceService) -> None:
    """Guesses that run beside each other get no more answers than one after the other."""
    answers = await fifty_guesses(auth, devices)
    assert sorted(answers) == [*["TOO_MANY_ATTEMPTS"] * 45, *["USER_CODE_INVALID"] * 5]


async def test_without_the_second_look_all_would_be_answered(
    auth: AuthRoom, devices: DeviceService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a limit looked at only before the guess lets parallel guesses through."""
    checked: set[object] = set()
    check = auth.room.limits.check

    async def once(*tries: Any, forgive: Any = None) -> None:
        task = asyncio.current_task()
        if task not in checked:
            checked.add(task)
            await check(*tries, forgive=forgive)

    monkeypatch.setattr(auth.room.limits, "check", once)
    assert (await fifty_guesses(auth, devices)).count("USER_CODE_INVALID") > 5


@pytest.mark.parametrize("way", ["inspect", "approve", "deny"])
async def test_the_right_guess_among_many_is_refused_like_the_wrong_ones(
    auth: AuthRoom,
    devices: DeviceService,
    owner: Connection,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """When the wrong ones beside it have used the limit up, nothing tells it apart or happens."""
    ada = await somebody(auth)
    started = await start(devices)
    check = auth.room.limits.check
    right: list[Any] = []
    wrong: list[str] = []

    async def right_is_late(*tries: Any, **options: Any) -> None:
        await check(*tries, **options)
        # It has passed, as the others have; a lock that it took now would only hold those up.
        if asyncio.current_task() in right:
            await until(lambda: len(wrong) == 19)

    monkeypatch.setattr(auth.room.limits, "check", right_is_late)

    async def call(index: int) -> str:
        if not index:
            right.append(asyncio.current_task())
        code = WRONG if index else started.user_code
        answer = await reason_of(getattr(devices, way)(caller=ada, user_code=code, address=HOME))
        if index:
            wrong.append(answer)
        return answer

    answers = await at_once(20, call)
    assert answers[0] == "TOO_MANY_ATTEMPTS"
    assert answers.count("TOO_MANY_ATTEMPTS") == 15
    row = await owner.fetchrow("SELECT approved_at, denied_at FROM chrome_auth_links")
    assert tuple(row) == (None, None)
