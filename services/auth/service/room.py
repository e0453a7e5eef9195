"""What the use cases of the room stand on."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

from chassis.clock import Clock
from chassis.limits import Limit, Limits
from chassis.postgres import Database
from chassis.revocations import Revocations
from services.auth.domain.devices import DevicePolicy
from services.auth.domain.passkeys import LOCAL, RelyingParty
from services.auth.domain.sessions import SessionPolicy
from services.auth.passwords import Passwords
from services.auth.service.signing_keys import SigningKeys

ROOM = "auth"
KEYS = "auth_idempotency_keys"


# Three codes of a million are right at any time, and no owner of a second factor needs ten tries an
# hour. Whoever keeps guessing gets one an hour; to wait until it is forgotten gains nothing.
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

    def pseudonym(self, text: str) -> str:
        """Returns a stand-in for an address or account in places that must not name anybody."""
        return hmac.digest(self.derive("pseudonyms"), text.encode(), hashlib.sha256)[:16].hex()
