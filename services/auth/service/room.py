"""What the use cases of the room stand on."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

from chassis.clock import Clock
from chassis.errors import Refusal
from chassis.limits import Limit, Limits
from chassis.postgres import Database
from chassis.revocations import Revocations
from services.auth.domain.devices import DevicePolicy
from services.auth.domain.passkeys import LOCAL, RelyingParty
from services.auth.domain.sessions import SessionPolicy
from services.auth.passwords import Passwords
from services.auth.service.signing_keys import SigningKeys
from services.auth.strength import Strength

# Writing about an account and its mail takes longer than finding that there is nothing to write.
ANSWER_SECONDS = 0.025
# An event loop's timers ring at whole milliseconds from when they were set, which would tell when
# that was: the last of a wait is spent awake.
_AWAKE_SECONDS = 0.002
ROOM = "auth"
KEYS = "auth_idempotency_keys"


# Three codes of a million are right at any time, and no owner of a second factor needs ten tries an
# hour. Whoever keeps guessing gets one an hour, as fewer leak away; to wait until all are forgotten
# gains nothing.
SECOND_FACTOR = Limit("second", free=10, first=1.0, longest=3600.0, remembered=86400.0)


@dataclass(frozen=True, slots=True)
class Guesses:
    """
    How fast passwords and codes may be guessed.

    An account is guessed at from many places, and an address guesses at many
    accounts: both are slowed down later than the pair, which is what somebody
    who mistypes a password is.
    """

    pair: Limit
    account: Limit
    address: Limit
    second: Limit = SECOND_FACTOR
    """An account's second factor, from wherever: whoever guesses at it has its password already."""


@dataclass(frozen=True, slots=True)
class Room:
    """Put together once, by __main__; every service takes it."""

    database: Database
    clock: Clock
    passwords: Passwords
    strength: Strength
    signer: SigningKeys
    policy: SessionPolicy
    limits: Limits
    guesses: Guesses
    registrations: Limit
    """How fast one address may make accounts."""
    deletion_grace: timedelta
    """How long the owner of an account that is to be deleted may change its mind."""
    derive: Callable[[str], bytes]
    """Gives 32 bytes for one purpose; see ServiceSettings.derive."""
    announce: Callable[[Revocations], Awaitable[None]]
    """Tells every process what was revoked; to be called after the commit."""
    wake_relay: Callable[[], None]
    """Says that an event waits in the outbox; to be called after the commit."""
    devices: DevicePolicy = field(default_factory=DevicePolicy)
    relying_party: RelyingParty = LOCAL
    """Whom passkeys are made for."""
    answer_seconds: float = ANSWER_SECONDS
    """What tells by its time who has an account is answered only after so long."""

    @contextlib.asynccontextmanager
    async def evenly(self) -> AsyncIterator[None]:
        """Ends no sooner than `answer_seconds` after it began, refused or not."""
        answer_at = time.monotonic() + self.answer_seconds
        try:
            yield
        except Refusal:
            await _wait_until(answer_at)
            raise
        await _wait_until(answer_at)

    def pseudonym(self, text: str) -> str:
        """Returns a stand-in for an address or account in places that must not name anybody."""
        # BLAKE2 keyed (RFC 7693): unlike HMAC it does not let go of the interpreter for so little.
        key = self.derive("pseudonyms")
        return hashlib.blake2b(text.encode(), key=key, digest_size=16).hexdigest()


async def _wait_until(moment: float) -> None:
    await asyncio.sleep(moment - _AWAKE_SECONDS - time.monotonic())
    while time.monotonic() < moment:  # noqa: ASYNC110 - an event would wait for the same timer
        await asyncio.sleep(0)
