"""What the tests of device logins share: people who approve, devices that start and poll."""

from dataclasses import dataclass
from typing import Any

import pytest

from chassis.callers import Caller
from chassis.errors import Code, Refusal
from services.auth.domain.devices import DeviceLogin
from services.auth.domain.sessions import Means
from services.auth.domain.users import User
from services.auth.service.devices import DeviceService, Started
from services.auth.service.sessions import Tokens
from tests.factories import AuthRoom, an_address, log_in
from tests.running import PASSWORD

HOME = "192.0.2.1"


@dataclass(slots=True)
class Somebody:
    """A user who is logged in, in whatever way."""

    user: User
    caller: Caller
    tokens: Tokens


async def somebody(auth: AuthRoom, means: Means | None = None) -> Somebody:
    email = an_address()
    user = await auth.accounts.register(email=email, password=PASSWORD, key=None)
    if means is None:
        tokens, user = await log_in(auth, email)
    else:
        async with auth.room.database.transaction() as conn:
            now = auth.room.clock.now()
            tokens, user = await auth.sessions.sign_in(conn, user.id, means, now)
    return Somebody(user, await auth.verifier.verify(tokens.access_token), tokens)


async def start(devices: DeviceService, address: str | None = HOME) -> Started:
    return await devices.start(client_name="Editor", address=address)


async def approve(
    devices: DeviceService, who: Somebody, started: Started, address: str = HOME
) -> DeviceLogin:
    return await devices.approve(caller=who.caller, user_code=started.user_code, address=address)


async def poll(devices: DeviceService, started: Started) -> tuple[Tokens, User]:
    return await devices.poll(started.device_code, address=HOME)


async def refused(call: Any, code: Code, reason: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await call
    assert (caught.value.code, caught.value.reason) == (code, reason)
    return caught.value
