"""COPY of the same rows into a table with the same keys: what PostgreSQL can take at most."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from benchmarks.bodies import event_ids
from benchmarks.work import Sample

# Same columns, keys, checks, indexes and foreign key as tool_usage; not partitioned.
SCHEMA = """
CREATE TABLE copy_usage (LIKE tool_usage INCLUDING ALL,
    FOREIGN KEY (user_id) REFERENCES users (id));
"""
COLUMNS = ("id", "user_id", "tool_name", "credits_used", "timestamp", "entry_id")
Row = tuple[UUID, UUID, str, int, datetime, UUID]
# More than is ever copied in a second.
_MOST_PER_SECOND = 200_000


@dataclass(frozen=True, slots=True)
class Copying:
    """Copies new rows over one connection, as the one flusher of a service has."""

    database_url: str
    users: Sequence[str]
    batch: int
    """Rows a COPY, each committed; 0 is one COPY for all."""

    def run(self, seconds: float) -> Sample:
        return asyncio.run(self._run(seconds))

    async def _run(self, seconds: float) -> Sample:
        # All of them now: making them must cost nothing while the clock runs.
        rows = list(self._rows(int(seconds * _MOST_PER_SECOND)))
        conn = await asyncpg.connect(self.database_url)
        latencies: list[float] = []
        try:
            started = time.perf_counter()
            until = started + seconds
            if not self.batch:
                await _copy(conn, _before(until, rows))
            for start in range(0, len(rows) if self.batch else 0, self.batch or 1):
                sent = time.perf_counter()
                if sent > until:
                    break
                await _copy(conn, rows[start : start + self.batch])
                latencies.append(time.perf_counter() - sent)
            elapsed = time.perf_counter() - started
        finally:
            await conn.close()
        return Sample.of(elapsed, latencies or [elapsed], 0)

    def _rows(self, count: int) -> Iterator[Row]:
        users = [UUID(user) for user in self.users]
        entry = UUID(int=random.getrandbits(128))
        for text in event_ids(count):
            event_id = UUID(text)
            at = datetime.fromtimestamp((event_id.int >> 80) / 1000, UTC)
            yield event_id, random.choice(users), "rewrite", 1, at, entry  # noqa: S311


def _before(until: float, rows: Sequence[Row]) -> Iterator[Row]:
    for row in rows:
        if time.perf_counter() > until:
            return
        yield row


async def _copy(
    conn: "asyncpg.Connection[asyncpg.Record]", rows: Sequence[Row] | Iterator[Row]
) -> None:
    await conn.copy_records_to_table("copy_usage", records=rows, columns=COLUMNS)
