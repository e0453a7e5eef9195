"""How well a password would resist guessing: zxcvbn in a child process."""

from services.auth import scoring
from services.auth.domain.passwords import Estimate
from services.auth.processes import BoundedProcesses

QUEUE = 16
# A long password's estimate on a slow core; measured from then on.
FIRST_SECONDS = 0.05


class Strength(BoundedProcesses):
    """Scores passwords one at a time: they are short work, and few ask for it."""

    def __init__(self, queue: int = QUEUE) -> None:
        """`queue` bounds the passwords waiting or being scored at once."""
        super().__init__(count=1, queue=queue, seconds=FIRST_SECONDS)

    async def estimate(self, password: str, email: str) -> Estimate:
        """Scores a password; HashingBusy if that cannot be done in time."""
        return await self._run(scoring.estimate, password, email)
