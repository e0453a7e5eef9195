"""What auth does without being asked, beside the relay: erase accounts, delete what is over."""

import asyncio

import structlog

from chassis import idempotency
from chassis.clock import Clock
from chassis.errors import Refusal
from chassis.postgres import Database
from services.auth.domain.mfa import ENROLMENT_LIFE
from services.auth.service.lifecycle import LifecycleService
from services.auth.service.room import KEYS, Room
from services.auth.store import emails, lifecycle, mfa, sessions

SWEEP_SECONDS = 600.0
# Between two batches, so that a large backlog does not crowd out calls.
BREATH_SECONDS = 0.1
BATCH = 1000
_log = structlog.get_logger()


async def sweep_forever(room: Room) -> None:
    """Erases accounts and deletes what is over in small batches until cancelled."""
    accounts = LifecycleService(room)
    while True:
        swept = 0
        try:
            swept = await erase_due(accounts) + await sweep(room.database, room.clock)
        except Refusal as refusal:
            _log.warning("sweep postponed", reason=refusal.reason)
        await asyncio.sleep(BREATH_SECONDS if swept else SWEEP_SECONDS)


async def erase_due(accounts: LifecycleService) -> int:
    """Erases a batch of the accounts whose grace is over, each by itself; returns how many."""
    erased = 0
    for user_id in await accounts.list_due():
        try:
            erased += await accounts.erase(user_id)
        except Refusal as refusal:
            _log.warning("erasure postponed", user_id=str(user_id), reason=refusal.reason)
        except Exception as error:  # noqa: BLE001 - one account's defect must not keep the others
            _log.error("erasure failed", user_id=str(user_id), exc_info=error)
    return erased


async def sweep(database: Database, clock: Clock) -> int:
    """
    Deletes one batch each of old sessions, keys, one-time rows and events; returns how many rows.

    Sessions are kept for 72 hours after their lifetime: refresh tokens and ExplainSession can say
    what became of them. Events and idempotency keys are kept as long, the others as EXPIRING says;
    an authenticator app that nobody confirmed goes when it no longer can be.
    """
    now = clock.now()
    before = now - idempotency.KEPT
    async with database.transaction() as conn:
        deleted = await sessions.delete_old_sessions(conn, before)
        deleted += await idempotency.forget(conn, KEYS, now)
        for table, kept in lifecycle.EXPIRING.items():
            deleted += await lifecycle.delete_expired(conn, table, now - kept, BATCH)
        deleted += await emails.delete_old_turns(conn, before, BATCH)
        deleted += await mfa.delete_unconfirmed(conn, now - ENROLMENT_LIFE, BATCH)
        deleted += await lifecycle.forget_old_events(conn, before, BATCH)
        return deleted + await lifecycle.forget_old_mail(conn, before, BATCH)
