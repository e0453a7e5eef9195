"""
Passwords: argon2id (RFC 9106) in a bounded thread pool of its own.

Parameters are OWASP's 19 MiB, 2 passes, 1 lane. Hashes that came from another
system (see hashes.py) are verified in the same threads and are outdated from
the start: a login replaces them.
"""

import os
import time

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from services.auth import hashes
from services.auth.threads import BoundedThreads

_ARGON2 = "$argon2"


class Passwords(BoundedThreads):
    """Hashes and verifies passwords on as many threads as there are cores."""

    def __init__(self, *, memory_kib: int, time_cost: int, queue: int) -> None:
        """`queue` bounds the passwords waiting or being hashed at once."""
        self._hasher = PasswordHasher(
            time_cost=time_cost, memory_cost=memory_kib, parallelism=1, hash_len=32, salt_len=16
        )
        started = time.perf_counter()
        # Verified in place of a missing hash: an unknown address must cost what a known one does.
        self._dummy = self._hasher.hash("no account has this password")
        super().__init__(
            threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2,
            queue=queue,
            name="argon2",
            seconds=time.perf_counter() - started,
        )

    async def hash(self, password: str) -> str:
        """Returns a PHC string; HashingBusy if it cannot be ready in time."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password: str, hashed: str | None) -> bool:
        """
        Tells whether the password fits; costs the same when there is no hash.

        An imported hash costs what its parameters say, until its owner's first
        login; by the time of a refusal somebody can tell such an account.
        """
        return await self._run(lambda: self._fits(password, hashed))

    def outdated(self, hashed: str) -> bool:
        """Tells whether a hash was made in another way than today's."""
        return not hashed.startswith(_ARGON2) or self._hasher.check_needs_rehash(hashed)

    def _fits(self, password: str, hashed: str | None) -> bool:
        if hashed is not None and not hashed.startswith(_ARGON2):
            foreign = hashes.read(hashed)
            if foreign is not None:
                # bcrypt takes "a" and "a\0a" for one password, HMAC "a" and "a\0".
                return foreign.fits(password.encode()) and "\0" not in password
            hashed = None
        try:
            return self._hasher.verify(hashed or self._dummy, password) and hashed is not None
        except (VerificationError, InvalidHashError):
            return False
