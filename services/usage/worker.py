"""What usage does without being asked: make the partitions of the months to come."""

import asyncio

import structlog

from chassis.errors import Refusal
from services.usage.service.metering import MeteringService

LOOK_AHEAD_SECONDS = 6 * 3600.0
RETRY_SECONDS = 60.0
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
