"""Reports on recorded calls: sums by period and tool, and all of them as a file."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from chassis.refusals import Overloaded
from services.usage.domain import exports, reports
from services.usage.domain.reports import Period, Total
from services.usage.errors import RangeTooLong, TimeZoneNotWholeHours, UnknownTimeZone
from services.usage.service.room import Room
from services.usage.store import metering as calls
from services.usage.store import reports as store

# Before the first row: no period is the 0th, no tool is called "".
FROM_THE_START = (0, "")
EXPORT_PAGE = 1000
# Each holds a page of rows in memory, and its reads compete with calls for connections.
MOST_EXPORTS = 20
RETRY_AFTER = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """A page of sums."""

    totals: Sequence[Total]
    cuts: Sequence[datetime]
    """The period n goes from cuts[n - 1] to cuts[n]."""
    last: tuple[int, str] | None
    """The key after which the next page starts; None on the last one."""


class ReportService:
    """Reading what was recorded."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._exports = 0

    async def summarize(
        self,
        *,
        user_id: UUID,
        start: datetime,
        end: datetime,
        period: Period,
        by_tool: bool,
        time_zone: str,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Report:
        """
        Returns a page of sums of a range of whole hours.

        RangeTooLong, UnknownTimeZone; TimeZoneNotWholeHours if the zone cuts an hour of the range.
        """
        _require_short(start, end, reports.LONGEST[period])
        zone = reports.find_zone(time_zone)
        if zone is None:
            raise UnknownTimeZone
        cuts = reports.cuts(start, end, period, zone)
        if not reports.on_whole_hours(start, end, cuts):
            raise TimeZoneNotWholeHours
        async with self._room.database.connection() as conn:
            totals = await store.sum_usage(
                conn,
                user_id=user_id,
                start=start,
                end=end,
                begins=cuts[:-1],
                by_tool=by_tool,
                after=after or FROM_THE_START,
                limit=limit + 1,
            )
        page = totals[:limit]
        last = (page[-1].period, page[-1].tool_name) if len(totals) > limit else None
        return Report(page, cuts, last)

    async def export(
        self, *, user_id: UUID, start: datetime, end: datetime
    ) -> AsyncGenerator[str, None]:
        """
        Yields the pieces of a CSV file of a range, newest first, a page of rows at most in each.

        RangeTooLong; Overloaded when too many exports run in this process. The line end of the
        last line comes last, so that a file that was cut short can be told from a whole one.
        """
        _require_short(start, end, reports.LONGEST_EXPORT)
        if self._exports >= MOST_EXPORTS:
            raise Overloaded(retry_after=RETRY_AFTER)
        self._exports += 1
        try:
            lines = exports.HEADER
            before: tuple[datetime, UUID] | None = None
            while True:
                async with self._room.database.connection() as conn:
                    page = await calls.list_usage(
                        conn,
                        user_id=user_id,
                        start=start,
                        end=end,
                        before=before,
                        limit=EXPORT_PAGE,
                    )
                if page:
                    lines += exports.LINE_END + exports.to_csv(page)
                    before = (page[-1].time, page[-1].id)
                if len(page) < EXPORT_PAGE:
                    yield lines + exports.LINE_END
                    return
                yield lines
                lines = ""
        finally:
            self._exports -= 1


def _require_short(start: datetime, end: datetime, longest: timedelta) -> None:
    if end - start > longest:
        raise RangeTooLong(metadata={"longest_days": str(longest.days)})
