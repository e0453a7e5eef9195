"""What an outbox owes its consumers: the rows of `<room>_deliveries`, claimed and finished."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from chassis.postgres import Connection


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a room."""

    id: UUID
    topic: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one consumer."""

    event: Event
    consumer: str
    attempts: int

    def fields(self) -> dict[str, str]:
        """What a log line says of it."""
        return {
            "event_id": str(self.event.id),
            "consumer": self.consumer,
            "attempts": str(self.attempts),
        }


async def claim(
    conn: Connection,
    room: str,
    consumers: Sequence[str],
    *,
    now: datetime,
    lease: timedelta,
    limit: int,
) -> list[Delivery]:
    """Claims due deliveries to these consumers; unfinished, they come due again after the lease."""
    rows = await conn.fetch(
        f"UPDATE {room}_deliveries d"
        " SET attempts = d.attempts + 1, next_attempt_at = $1 + $2::interval"
        f" FROM {room}_outbox o"
        " WHERE o.id = d.event_id AND (d.event_id, d.consumer) IN ("
        f"  SELECT event_id, consumer FROM {room}_deliveries"
        "   WHERE state = 'due' AND next_attempt_at <= $1 AND consumer = ANY($4::text[])"
        "   ORDER BY next_attempt_at LIMIT $3 FOR UPDATE SKIP LOCKED)"
        " RETURNING o.id, o.topic, o.payload, d.consumer, d.attempts",
        now,
        lease,
        limit,
        list(consumers),
    )
    return [
        Delivery(
            Event(row["id"], row["topic"], json.loads(row["payload"])),
            row["consumer"],
            row["attempts"],
        )
        for row in rows
    ]


async def finish(
    conn: Connection, room: str, delivery: Delivery, *, state: str, error: str, at: datetime
) -> None:
    """Writes how an attempt ended; a relay whose lease ran out before it answered is fenced."""
    await conn.execute(
        f"UPDATE {room}_deliveries"
        " SET state = $4, last_error = $5, next_attempt_at = $6"
        " WHERE event_id = $1 AND consumer = $2 AND attempts = $3 AND state = 'due'",
        delivery.event.id,
        delivery.consumer,
        delivery.attempts,
        state,
        error,
        at,
    )
