"""
The transactional outbox: an effect in another room happens if and only if our rows commit.

A use case writes `<room>_outbox` (the event, insert-only) and a row per consumer
in `<room>_deliveries` in its own transaction. The relay claims due deliveries
with SKIP LOCKED and a lease, calls the consumer's idempotent RPC and marks them
done on its answer: at-least-once delivery, exactly-once effect.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import Counter

from chassis import deliveries
from chassis.clock import Clock
from chassis.deliveries import Delivery, Event
from chassis.errors import Refusal
from chassis.ids import uuid7
from chassis.postgres import Connection, Database

__all__ = ["Event", "Relay", "Undeliverable", "enqueue", "revive"]

# A claimed delivery comes due again after this, should its relay have died.
LEASE = timedelta(seconds=30)
BATCH = 100
MAX_ATTEMPTS = 20
MAX_BACKOFF_SECONDS = 3600.0  # twenty attempts then last eight hours, a consumer's bad night
POLL_SECONDS = 1.0

DEAD = Counter("finity_outbox_dead_total", "Deliveries given up.", ["room", "consumer"])
_log = structlog.get_logger()


Deliver = Callable[[Event], Awaitable[None]]


class Undeliverable(Exception):  # noqa: N818 - as a refusal, an answer and not an error
    """The consumer will never take the event; the text says why and is kept: nothing secret."""


async def enqueue(
    conn: Connection,
    room: str,
    topic: str,
    payload: Mapping[str, Any],
    consumers: Sequence[str],
    *,
    now: datetime,
) -> UUID:
    """Writes an event and its deliveries in the caller's transaction; returns the event's id."""
    event_id = uuid7(now)
    await conn.execute(
        f"WITH event AS (INSERT INTO {room}_outbox (id, topic, payload, created_at)"
        " VALUES ($1, $2, $3, $4) RETURNING id)"
        f" INSERT INTO {room}_deliveries (event_id, consumer, next_attempt_at)"
        " SELECT event.id, consumer, $4 FROM event, unnest($5::text[]) AS consumer",
        event_id,
        topic,
        json.dumps(payload),
        now,
        list(consumers),
    )
    return event_id


class Relay:
    """Delivers a room's events until cancelled; any number may run at once."""

    def __init__(
        self, room: str, database: Database, consumers: Mapping[str, Deliver], clock: Clock
    ) -> None:
        """`consumers` maps a consumer's name to the call that delivers an event to it."""
        self._room = room
        self._database = database
        self._consumers = consumers
        self._clock = clock
        self._wakes = {consumer: asyncio.Event() for consumer in consumers}

    def wake(self) -> None:
        """Looks for due deliveries now rather than at the next poll."""
        for wake in self._wakes.values():
            wake.set()

    async def run(self) -> None:
        """Serves each consumer by itself: one that is slow keeps nobody else waiting."""
        async with asyncio.TaskGroup() as group:
            for consumer in self._consumers:
                group.create_task(self._run(consumer))

    async def deliver_due(self, consumer: str | None = None) -> int:
        """Tries one batch of due deliveries, to one consumer or all; returns how many it had."""
        consumers, now = [consumer] if consumer else list(self._consumers), self._clock.now()
        async with self._database.transaction() as conn:
            claimed = await deliveries.claim(
                conn, self._room, consumers, now=now, lease=LEASE, limit=BATCH
            )
        await asyncio.gather(
            *(self._attempt(delivery) for delivery in claimed), return_exceptions=True
        )
        return len(claimed)

    async def _run(self, consumer: str) -> None:
        wake = self._wakes[consumer]
        while True:
            wake.clear()
            delivered = 0
            try:
                delivered = await self.deliver_due(consumer)
            except Refusal as refusal:
                _log.warning("outbox not read", room=self._room, reason=refusal.reason)
            if delivered < BATCH:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await wake.wait()

    async def _attempt(self, delivery: Delivery) -> None:
        try:
            await self._consumers[delivery.consumer](delivery.event)
        except Undeliverable as reason:
            await self._give_up(delivery, str(reason))
        except Refusal as refusal:
            await self._postpone(delivery, refusal.reason)
        except Exception as error:  # noqa: BLE001 - one consumer's defect must not stop the others
            _log.error("delivery failed", consumer=delivery.consumer, exc_info=error)
            await self._postpone(delivery, type(error).__name__)
        else:
            await self._finish(delivery, "done", "", self._clock.now())

    async def _postpone(self, delivery: Delivery, reason: str) -> None:
        if delivery.attempts >= MAX_ATTEMPTS:
            await self._give_up(delivery, reason)
            return
        _log.warning("delivery postponed", **delivery.fields(), reason=reason)
        due = self._clock.now() + timedelta(seconds=backoff_seconds(delivery.attempts))
        await self._finish(delivery, "due", reason, due)

    async def _give_up(self, delivery: Delivery, reason: str) -> None:
        DEAD.labels(self._room, delivery.consumer).inc()
        _log.error("delivery dead", **delivery.fields(), reason=reason)
        await self._finish(delivery, "dead", reason, self._clock.now())

    async def _finish(self, delivery: Delivery, state: str, error: str, at: datetime) -> None:
        async with self._database.transaction() as conn:
            await deliveries.finish(conn, self._room, delivery, state=state, error=error, at=at)


async def revive(conn: Connection, room: str) -> int:
    """Makes a room's dead deliveries due again, with all their attempts; returns how many."""
    revived = await conn.fetch(
        f"UPDATE {room}_deliveries SET state = 'due', attempts = 0, next_attempt_at = now()"
        " WHERE state = 'dead' RETURNING event_id"
    )
    return len(revived)


def backoff_seconds(attempts: int) -> float:
    """Returns the wait after a number of failed attempts: doubling, capped, ±20 % jitter."""
    return float(min(0.5 * 2 ** (attempts - 1), MAX_BACKOFF_SECONDS) * random.uniform(0.8, 1.2))  # noqa: S311
