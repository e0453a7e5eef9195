"""What auth does without being asked, beside the relay of its outbox: delete what is long over."""

import asyncio

import structlog

from chassis import idempotency
from chassis.clock import Clock
from chassis.errors import Refusal
from chassis.postgres import Database
from services.auth.domain.mfa import CHALLENGE_LIFE
from services.auth.service.room import KEYS
from services.auth.store import mfa, sessions

SWEEP_SECONDS = 600.0
# Between two batches, so that a large backlog does not crowd out calls.
BREATH_SECONDS = 0.1
_log = structlog.get_logger()


async def sweep_forever(database: Database, clock: Clock) -> None:
    """Deletes expired sessions and idempotency keys in small batches until cancelled."""
    while True:
        deleted = 0
        try:
            deleted = await sweep(database, clock)
        except Refusal as refusal:
            _log.warning("sweep postponed", reason=refusal.reason)
        await asyncio.sleep(BREATH_SECONDS if deleted else SWEEP_SECONDS)


async def sweep(database: Database, clock: Clock) -> int:
    """Deletes one batch of each; returns how many rows went."""
    now = clock.now()
    async with database.transaction() as conn:
        deleted = await sessions.delete_old_sessions(conn, now)
        deleted += await mfa.delete_old_challenges(conn, now - CHALLENGE_LIFE)
        return deleted + await idempotency.forget(conn, KEYS, now)
