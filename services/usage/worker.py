"""What usage does without being asked: make partitions, let begin and expire what is due."""

import asyncio

import structlog

from chassis.errors import Refusal
from services.usage.service.metering import MeteringService
from services.usage.service.standings import StandingService

LOOK_AHEAD_SECONDS = 6 * 3600.0
RETRY_SECONDS = 60.0
MATURE_SECONDS = 10.0
# Between two batches: at the first of a month every account is due, and calls go first.
BREATH_SECONDS = 0.1
_log = structlog.get_logger()


async def look_ahead_forever(metering: MeteringService) -> None:
    """Makes missing partitions every few hours until cancelled."""
    while True:
        pause = LOOK_AHEAD_SECONDS
        try:
            made = await metering.make_partitions()
            if made:
                _log.info("partitions made", count=made)
        except Refusal as refusal:
            _log.warning("partitions not made", reason=refusal.reason)
            pause = RETRY_SECONDS
        await asyncio.sleep(pause)


async def mature_forever(standings: StandingService) -> None:
    """Grants allowances and lets grants begin and expire, in small batches until cancelled."""
    while True:
        matured = 0
        try:
            matured = await standings.mature_due()
        except Refusal as refusal:
            _log.warning("accounts not matured", reason=refusal.reason)
        await asyncio.sleep(BREATH_SECONDS if matured else MATURE_SECONDS)
