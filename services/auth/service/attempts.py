"""How often a secret may be guessed: per account, per address, and per pair of both."""

import functools
import ipaddress

from chassis.limits import Limit, Try
from services.auth.service.room import Room

V4, V6_PREFIX = 4, 64
# Calls of a kind that a network makes freely for each guess it has: more than an office of people.
CALLS_PER_GUESS = 20


@functools.lru_cache(maxsize=1000)
def network(address: str | None) -> str:
    """Returns what one customer of a network has: an IPv4 address, or an IPv6 /64."""
    if address is None:
        return "unknown"
    ip = ipaddress.ip_address(address)
    return str(ip if ip.version == V4 else ipaddress.ip_network((ip, V6_PREFIX), strict=False))


async def count_call(room: Room, kind: str, address: str | None) -> None:
    """
    TooManyAttempts if one network makes ever more calls of a kind; every call counts.

    For what anybody may call and what costs a row, a call elsewhere or a calculation.
    """
    free = CALLS_PER_GUESS * room.guesses.address.free
    # Past the bound a call is left whenever one has leaked away, at the least each minute: too few
    # to cost anything, enough for a person.
    limit = Limit(kind, free=free, first=1.0, longest=60.0)
    one = Try(limit, room.pseudonym(network(address)))
    await room.limits.check(one)
    await room.limits.failed(one)


class Attempts:
    """Counts failures; nothing it keeps names an account or an address."""

    def __init__(self, room: Room, account: Limit | None = None) -> None:
        """`account` is how fast one account may be guessed at; that of passwords if not given."""
        self._room = room
        self._account = account or room.guesses.account

    async def check(self, account: str, address: str | None) -> None:
        """TooManyAttempts while an earlier failure still holds callers off."""
        await self._room.limits.check(*self._tries(account, address))

    def check_here(self, account: str, address: str | None) -> None:
        """The same as far as this process knows; `succeeded` asks every other."""
        self._room.limits.check_here(*self._tries(account, address))

    async def failed(self, account: str, address: str | None) -> None:
        """
        Counts a failure.

        TooManyAttempts where `succeeded` would have said so: what many guesses at
        once are answered must not name the right one.
        """
        tries = self._tries(account, address)
        await self._room.limits.check(*tries)
        await self._room.limits.failed(*tries)

    async def succeeded(self, account: str, address: str | None) -> None:
        """
        Forgets the failures of the pair.

        TooManyAttempts if guesses that ran beside this one used the limit up: the
        one of many parallel guesses that is right must not get through.
        """
        tries = self._tries(account, address)
        await self._room.limits.check(*tries, forgive=tries[-1])

    def _tries(self, account: str, address: str | None) -> list[Try]:
        who, where = self._room.pseudonym(account), self._room.pseudonym(network(address))
        guesses = self._room.guesses
        return [
            Try(guesses.address, where),
            Try(self._account, who),
            Try(guesses.pair, f"{who}:{where}"),
        ]
