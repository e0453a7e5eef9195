"""
Passwords: argon2id (RFC 9106) in child processes.

Parameters are OWASP's 7 MiB, 5 passes, 1 lane (decision 22). Hashes of other parameters
and those that came from another system (see hashes.py) are verified in the same
processes and are outdated from the start: a login replaces them.
"""

import time

from chassis.server import StartupError
from chassis.siblings import cores
from services.auth import hashing
from services.auth.errors import HashingBusy
from services.auth.processes import BoundedProcesses


class Passwords(BoundedProcesses):
    """Hashes and verifies passwords."""

    def __init__(self, *, memory_kib: int, time_cost: int, queue: int, processes: int = 0) -> None:
        """`queue` bounds the passwords waiting or being hashed; 0 `processes` is one a core."""
        self._passes, self._bytes = time_cost, memory_kib * 1024
        started = time.perf_counter()
        # Verified in place of a missing hash: an unknown address must cost what a known one does.
        self._dummy = hashing.make("no account has this password", self._passes, self._bytes)
        super().__init__(
            count=processes or cores(),
            queue=queue,
            seconds=time.perf_counter() - started,
        )

    async def ready(self) -> None:
        """Starts the processes, so that no login waits for one; StartupError if that fails."""
        try:
            await self._start(hashing.make, "nobody's", self._passes, self._bytes)
        except HashingBusy as error:
            raise StartupError(
                "The processes that hash passwords cannot be started; the lines above say why."
            ) from error

    async def hash(self, password: str) -> str:
        """Returns a PHC string; HashingBusy if it cannot be ready in time."""
        return await self._run(hashing.make, password, self._passes, self._bytes)

    async def verify(self, password: str, hashed: str | None) -> bool:
        """
        Tells whether the password fits; costs the same when there is no hash.

        A hash of other parameters, an imported one too, costs what these say until its
        owner's next login; by the time of a refusal somebody can tell such an account.
        """
        # The same question whether there is a hash or not.
        asked = self._dummy if hashed is None else hashed
        fits = await self._run(hashing.fits, password, asked, self._dummy)
        return fits and hashed is not None

    def outdated(self, hashed: str) -> bool:
        """Tells whether a hash was made in another way than today's."""
        return hashing.outdated(hashed, self._dummy)
