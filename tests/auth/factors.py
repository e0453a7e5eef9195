"""Somebody with second factors, as use cases over the auth room."""

from dataclasses import dataclass, replace
from typing import Any

import pyotp
import pytest

from chassis.callers import Caller
from chassis.errors import Refusal
from chassis.idempotency import Key
from services.auth.domain.users import Role, User
from services.auth.errors import MfaRequired
from services.auth.service.mfa import MfaService
from services.auth.service.passkeys import PasskeyService
from services.auth.service.proofs import Proof, ProofKind, ProofService
from services.auth.service.sessions import Tokens
from tests.authenticator import Authenticator
from tests.factories import AuthRoom, an_address, log_in
from tests.fakes import FakeClock
from tests.owner import make_admin, verify_address
from tests.running import PASSWORD


@dataclass(slots=True)
class Factors:
    """The use cases of second factors over a room."""

    auth: AuthRoom
    clock: FakeClock
    mfa: MfaService
    passkeys: PasskeyService
    proofs: ProofService

    async def somebody(self, *, verified: bool = True) -> "Somebody":
        """Registers and logs in somebody new, without a factor."""
        user = await self.auth.accounts.register(email=an_address(), password=PASSWORD, key=None)
        if verified:
            async with self.auth.room.database.connection() as conn:
                await verify_address(conn, user.id)
        tokens, user = await log_in(self.auth, user.email)
        return Somebody(self, user, await self.auth.verifier.verify(tokens.access_token))

    async def boss(self) -> "Somebody":
        """Registers and logs in an administrator, without a factor."""
        boss = await self.somebody()
        async with self.auth.room.database.connection() as conn:
            await make_admin(conn, boss.user.id)
        boss.user = replace(boss.user, role=Role.ADMIN)
        boss.caller = replace(boss.caller, role="admin")
        return boss

    async def complete(self, challenge: str, kind: ProofKind, text: str) -> tuple[Tokens, User]:
        return await self.proofs.complete_sign_in(
            challenge=challenge, proof=Proof(kind, text), address="192.0.2.1"
        )


@dataclass(slots=True)
class Somebody:
    """A user with a session."""

    factors: Factors
    user: User
    caller: Caller
    secret: str = ""
    codes: tuple[str, ...] = ()

    async def enrol(self) -> None:
        """Gets an authenticator app; its first code is that of now."""
        self.secret = (await self.factors.mfa.enrol_totp(self.caller)).secret
        codes = await self.factors.mfa.confirm_totp(self.caller, self.code(), None)
        self.codes = tuple(codes)

    async def register(self, device: Authenticator, *, key: Key | None = None) -> Any:
        """Gets a passkey; returns its id and recovery codes."""
        started = await self.factors.passkeys.start_registration(self.caller)
        return await self.factors.passkeys.finish_registration(
            self.caller, credential=device.create(started.options), name="phone", key=key
        )

    def code(self, steps: int = 0) -> str:
        """Returns the code of the time step `steps` from now."""
        return pyotp.TOTP(self.secret).at(self.factors.clock.now(), counter_offset=steps)

    async def challenge(self, *, key: Key | None = None) -> str:
        """Logs in by password; returns the challenge that holds the session back."""
        with pytest.raises(MfaRequired) as held:
            await log_in(self.factors.auth, self.user.email, key=key)
        return held.value.metadata["challenge"]

    async def second_step(self, kind: ProofKind, text: str) -> tuple[Tokens, User]:
        return await self.factors.complete(await self.challenge(), kind, text)

    async def sign_in(self) -> None:
        """Signs in with the app, a step later: from now on the session is of two factors."""
        self.factors.clock.advance(seconds=30)
        tokens, self.user = await self.second_step(ProofKind.TOTP, self.code())
        self.caller = await self.factors.auth.verifier.verify(tokens.access_token)

    async def with_passkey(self, device: Authenticator) -> str:
        """Shows a passkey for a challenge of its own."""
        return device.get((await self.factors.passkeys.start_assertion()).options)


def open_factors(auth: AuthRoom, clock: FakeClock) -> Factors:
    """The use cases of second factors over an auth room."""
    mfa = MfaService(auth.room)
    passkeys = PasskeyService(auth.room, mfa)
    proofs = ProofService(auth.room, auth.sessions, mfa, passkeys)
    return Factors(auth, clock, mfa, passkeys, proofs)


def opened(answers: list[Any]) -> int:
    """Counts the answers that are sessions."""
    return sum(not isinstance(answer, Refusal) for answer in answers)
