"""What usage does without being asked: partitions of months to come, holds that are over."""

import asyncio

import structlog

from chassis.errors import Refusal
from services.usage.service.metering import MeteringService
from services.usage.service.reservations import ReservationService

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


async def sweep_forever(reservations: ReservationService, seconds: float) -> None:
    """Lets accounts mature that nobody looks at until cancelled."""
    while True:
        await asyncio.sleep(seconds)
        try:
            swept = await reservations.sweep()
            if swept:
                _log.info("accounts swept", count=swept)
        except Refusal as refusal:
            _log.warning("accounts not swept", reason=refusal.reason)
