"""
Passwords: argon2id (RFC 9106) in a bounded thread pool of its own.

Parameters are OWASP's 7 MiB, 5 passes, 1 lane (decision 22). They are made and verified
by libsodium, which fills memory with the widest vectors the processor has. Hashes of
other parameters and those that came from another system (see hashes.py) are
verified in the same threads and are outdated from the start: a login replaces them.
"""

import os
import time

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from nacl.exceptions import InvalidkeyError
from nacl.pwhash import argon2id

from services.auth import hashes
from services.auth.threads import BoundedThreads

_ARGON2 = "$argon2"


class Passwords(BoundedThreads):
    """Hashes and verifies passwords on as many threads as there are cores."""

    def __init__(self, *, memory_kib: int, time_cost: int, queue: int) -> None:
        """`queue` bounds the passwords waiting or being hashed at once."""
        self._passes, self._bytes = time_cost, memory_kib * 1024
        self._other = PasswordHasher()
        started = time.perf_counter()
        # Verified in place of a missing hash: an unknown address must cost what a known one does.
        self._dummy = self._make("no account has this password")
        self._today = self._dummy[: self._dummy.index(",p=") + len(",p=1$")]
        super().__init__(
            threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2,
            queue=queue,
            name="argon2",
            seconds=time.perf_counter() - started,
        )

    async def hash(self, password: str) -> str:
        """Returns a PHC string; HashingBusy if it cannot be ready in time."""
        return await self._run(lambda: self._make(password))

    async def verify(self, password: str, hashed: str | None) -> bool:
        """
        Tells whether the password fits; costs the same when there is no hash.

        A hash of other parameters, an imported one too, costs what these say until its
        owner's next login; by the time of a refusal somebody can tell such an account.
        """
        return await self._run(lambda: self._fits(password, hashed))

    def outdated(self, hashed: str) -> bool:
        """Tells whether a hash was made in another way than today's."""
        return not hashed.startswith(self._today) or len(hashed) != len(self._dummy)

    def _make(self, password: str) -> str:
        made = argon2id.str(password.encode(), opslimit=self._passes, memlimit=self._bytes)
        return made.decode()

    def _fits(self, password: str, hashed: str | None) -> bool:
        if hashed is not None and self.outdated(hashed):
            fits = self._fits_other(password, hashed)
            if fits is not None:
                return fits
            hashed = None
        try:
            argon2id.verify((hashed or self._dummy).encode(), password.encode())
        except InvalidkeyError:
            return False
        return hashed is not None

    def _fits_other(self, password: str, hashed: str) -> bool | None:
        """Tells whether it fits a hash that was made in another way; None if that is no hash."""
        if hashed.startswith(_ARGON2):
            try:
                return self._other.verify(hashed, password)
            except VerificationError:
                return False
            except InvalidHashError:
                return None
        foreign = hashes.read(hashed)
        if foreign is None:
            return None
        # bcrypt takes "a" and "a\0a" for one password, HMAC "a" and "a\0".
        return foreign.fits(password.encode()) and "\0" not in password
