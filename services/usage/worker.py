"""What usage does without being asked: partitions, what is due, proofs, tidying."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import structlog
from prometheus_client import Counter, Gauge

from chassis.errors import Refusal
from services.usage.service.metering import MeteringService
from services.usage.service.proofs import ProofService
from services.usage.service.standings import StandingService
from services.usage.service.use_cases import UseCases

LOOK_AHEAD_SECONDS = 6 * 3600.0
RETRY_SECONDS = 60.0
# Between two batches, so that a large backlog does not crowd out calls; and between two rounds.
BREATH_SECONDS = 0.1
ROUND_SECONDS = 60.0
SWEEP_SECONDS = 600.0
DRIFT = Gauge("finity_usage_ledger_drift", "Accounts that do not add up.")
VERIFIED = Counter("finity_usage_ledger_verified_total", "Accounts looked at, each change anew.")
Job = Callable[[], Coroutine[Any, Any, None]]
_log = structlog.get_logger()


def jobs(cases: UseCases, sweep_seconds: float, kept_months: int) -> Sequence[Job]:
    """Returns all of it, each to be run until cancelled; see Settings for the two figures."""
    return (
        partial(look_ahead_forever, cases.metering),
        partial(sweep_forever, cases.standings, sweep_seconds),
        partial(verify_forever, cases.proofs),
        partial(detach_forever, cases.proofs, kept_months),
        partial(forget_forever, cases.ledger.forget_keys, "idempotency keys"),
        partial(forget_forever, cases.reservations.forget, "reservations"),
    )


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


async def sweep_forever(standings: StandingService, seconds: float) -> None:
    """Lets accounts mature that nobody looks at, in small batches until cancelled."""
    while True:
        matured = 0
        try:
            matured = await standings.mature_due()
        except Refusal as refusal:
            _log.warning("accounts not matured", reason=refusal.reason)
        # At the first of a month every account is due, and calls go first.
        await asyncio.sleep(BREATH_SECONDS if matured else seconds)


async def verify_forever(proofs: ProofService) -> None:
    """Proves the accounts that changed, in small batches, until cancelled."""
    after = None
    while True:
        try:
            proof = await proofs.verify_changed(after)
            after = proof.last
            VERIFIED.inc(proof.accounts)
            for fault in proof.faults:
                _log.error(
                    "ledger does not add up",
                    user_id=str(fault.user_id),
                    check=fault.check,
                    expected=fault.expected,
                    found=fault.found,
                )
            if after is None:
                DRIFT.set(await proofs.count_unsound())
        except Refusal as refusal:
            _log.warning("ledgers not verified", reason=refusal.reason)
            after = None
        await asyncio.sleep(ROUND_SECONDS if after is None else BREATH_SECONDS)


async def detach_forever(proofs: ProofService, kept_months: int) -> None:
    """Detaches months older than those that are kept until cancelled; 0 keeps all."""
    while kept_months:
        pause = LOOK_AHEAD_SECONDS
        try:
            names = await proofs.detach_months(kept_months)
            if names:
                _log.info("months detached", tables=list(names))
                pause = BREATH_SECONDS
        except Refusal as refusal:
            _log.warning("months not detached", reason=refusal.reason)
            pause = RETRY_SECONDS
        await asyncio.sleep(pause)


async def forget_forever(forget: Callable[[], Awaitable[int]], what: str) -> None:
    """Deletes what nobody can ask for again, in small batches until cancelled."""
    while True:
        forgotten = 0
        try:
            forgotten = await forget()
        except Refusal as refusal:
            _log.warning("sweep postponed", what=what, reason=refusal.reason)
        await asyncio.sleep(BREATH_SECONDS if forgotten else SWEEP_SECONDS)
