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
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import Counter

from chassis.clock import Clock
from chassis.errors import Refusal
from chassis.ids import uuid7
from chassis.postgres import Connection, Database

# A claimed delivery comes due again after this, should its relay have died.
LEASE = timedelta(seconds=30)
BATCH = 100
MAX_ATTEMPTS = 20
MAX_BACKOFF_SECONDS = 3600.0  # twenty attempts then last eight hours, a consumer's bad night
POLL_SECONDS = 1.0

DEAD = Counter("finity_outbox_dead_total", "Deliveries given up.", ["room", "consumer"])
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a room."""

    id: UUID
    topic: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Delivery:
    event: Event
    consumer: str
    attempts: int


Deliver = Callable[[Event], Awaitable[None]]


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
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Looks for due deliveries now rather than at the next poll."""
        self._wake.set()

    async def run(self) -> None:
        while True:
            self._wake.clear()
            delivered = 0
            try:
                delivered = await self.deliver_due()
            except Refusal as refusal:
                _log.warning("outbox not read", room=self._room, reason=refusal.reason)
            if delivered < BATCH:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._wake.wait()

    async def deliver_due(self) -> int:
        """Tries one batch of due deliveries; returns how many were claimed."""
        async with self._database.transaction() as conn:
            claimed = await _claim(conn, self._room, self._clock.now())
        await asyncio.gather(
            *(self._attempt(delivery) for delivery in claimed), return_exceptions=True
        )
        return len(claimed)

    async def _attempt(self, delivery: _Delivery) -> None:
        try:
            await self._consumers[delivery.consumer](delivery.event)
        except Refusal as refusal:
            await self._postpone(delivery, refusal.reason)
        except Exception as error:  # noqa: BLE001 - one consumer's defect must not stop the others
            _log.error("delivery failed", consumer=delivery.consumer, exc_info=error)
            await self._postpone(delivery, type(error).__name__)
        else:
            await self._finish(delivery, "done", "", self._clock.now())

    async def _postpone(self, delivery: _Delivery, reason: str) -> None:
        fields = {
            "event_id": str(delivery.event.id),
            "consumer": delivery.consumer,
            "attempts": delivery.attempts,
            "reason": reason,
        }
        if delivery.attempts >= MAX_ATTEMPTS:
            DEAD.labels(self._room, delivery.consumer).inc()
            _log.error("delivery dead", **fields)
            await self._finish(delivery, "dead", reason, self._clock.now())
            return
        _log.warning("delivery postponed", **fields)
        due = self._clock.now() + timedelta(seconds=backoff_seconds(delivery.attempts))
        await self._finish(delivery, "due", reason, due)

    async def _finish(self, delivery: _Delivery, state: str, error: str, at: datetime) -> None:
        async with self._database.transaction() as conn:
            # The attempt number fences a relay whose lease ran out before it answered.
            await conn.execute(
                f"UPDATE {self._room}_deliveries"
                " SET state = $4, last_error = $5, next_attempt_at = $6"
                " WHERE event_id = $1 AND consumer = $2 AND attempts = $3 AND state = 'due'",
                delivery.event.id,
                delivery.consumer,
                delivery.attempts,
                state,
                error,
                at,
            )


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


async def _claim(conn: Connection, room: str, now: datetime) -> list[_Delivery]:
    rows = await conn.fetch(
        f"UPDATE {room}_deliveries d"
        " SET attempts = d.attempts + 1, next_attempt_at = $1 + $2::interval"
        f" FROM {room}_outbox o"
        " WHERE o.id = d.event_id AND (d.event_id, d.consumer) IN ("
        f"  SELECT event_id, consumer FROM {room}_deliveries"
        "   WHERE state = 'due' AND next_attempt_at <= $1"
        "   ORDER BY next_attempt_at LIMIT $3 FOR UPDATE SKIP LOCKED)"
        " RETURNING o.id, o.topic, o.payload, d.consumer, d.attempts",
        now,
        LEASE,
        BATCH,
    )
    return [
        _Delivery(
            Event(row["id"], row["topic"], json.loads(row["payload"])),
            row["consumer"],
            row["attempts"],
        )
        for row in rows
    ]
