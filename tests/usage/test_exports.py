"""ExportUsage: a file that is whole, harmless to spreadsheets and small in memory."""

import csv
import io
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from finity.usage.v1 import report_pb2, report_pb2_grpc
from grpc import StatusCode, aio
from hypothesis import given
from hypothesis import strategies as st

from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from chassis.times import to_timestamp
from services.usage.domain.exports import FORMULA, harmless, to_csv
from services.usage.domain.metering import Event
from services.usage.service import reports as module
from services.usage.service.reports import ReportService
from services.usage.service.use_cases import UseCases
from services.usage.store import metering
from tests.factories import make_event, make_user, reason_of
from tests.fakes import FakeClock
from tests.running import House, refusal_of

DAY = timedelta(days=1)
HEADER = ["event_id", "time", "tool_name", "credits"]


@given(name=st.text(st.characters(codec="utf-8"), max_size=20), spent=st.integers(0, 10**6))
def test_any_text_survives_and_none_is_a_formula(name: str, spent: int) -> None:
    """A CSV reader gets back what was written, but for the apostrophe before a formula."""
    clock = FakeClock()
    event = Event(uuid7(clock.now()), UUID(int=1), name, spent, clock.now())
    (row,) = csv.reader(io.StringIO(to_csv([event]), newline=""))
    assert (row[0], row[2:]) == (str(event.id), [harmless(name), str(spent)])
    assert not any(cell.startswith(FORMULA) for cell in row)
    assert harmless(name).removeprefix("'") == name.removeprefix("'")


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
def test_a_formula_becomes_text(cell: str) -> None:
    assert harmless(cell) == f"'{cell}"
    assert harmless(f"a{cell}") == f"a{cell}"


async def record(
    database: Database, owner: Connection, clock: FakeClock, calls: int, **event: Any
) -> tuple[UUID, list[Event]]:
    """A new user with so many calls, a second apart, and their partitions."""
    user_id = (await make_user(owner, clock)).id
    events = [
        make_event(user_id, clock.now() - timedelta(seconds=number), credits=0, **event)
        for number in range(calls)
    ]
    async with database.transaction() as conn:
        await metering.make_partitions(conn, clock.now() - 35 * DAY, clock.now() + DAY)
        await metering.write_events(conn, events, {})
    return user_id, events


async def export(usage: UseCases, user_id: UUID, clock: FakeClock, days: int = 30) -> list[str]:
    end = clock.now() + DAY
    pieces = ReportService(usage.room).export(user_id=user_id, start=end - days * DAY, end=end)
    return [piece async for piece in pieces]


@pytest.mark.parametrize("calls", [0, 1, 6, 7, 8, 14, 30])
async def test_a_file_has_every_call_once(
    usage: UseCases,
    owner: Connection,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    calls: int,
) -> None:
    """However many pages it takes; it ends in a line break and no piece before it does."""
    monkeypatch.setattr(module, "EXPORT_PAGE", 7)
    user_id, events = await record(usage.room.database, owner, clock, calls)
    await record(usage.room.database, owner, clock, 3)
    pieces = await export(usage, user_id, clock)
    rows = list(csv.reader(io.StringIO("".join(pieces), newline="")))
    assert rows[0] == HEADER
    assert [row[0] for row in rows[1:]] == [str(event.id) for event in events]
    assert [piece.endswith("\r\n") for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) == calls // 7 + 1


async def test_memory_holds_one_page(
    usage: UseCases, usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Pieces stay below 256 KiB with the longest names there are."""
    user_id, _ = await record(usage_database, owner, clock, 2500, tool_name="-" * 100)
    pieces = await export(usage, user_id, clock)
    assert len(pieces) == 3
    assert max(len(piece) for piece in pieces) < 256 * 1024


async def test_exports_are_bounded(
    usage: UseCases, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range past a year is RANGE_TOO_LONG; one export too many OVERLOADED until one ends."""
    service, end = ReportService(usage.room), clock.now()

    def start(days: int = 1) -> Any:
        return service.export(user_id=UUID(int=7), start=end - days * DAY, end=end)

    assert await reason_of(anext(start(367))) == "RANGE_TOO_LONG"
    monkeypatch.setattr(module, "MOST_EXPORTS", 1)
    first = start()
    await anext(first)
    assert await reason_of(anext(start())) == "OVERLOADED"
    await first.aclose()
    assert await reason_of(anext(start())) == ""


async def test_a_file_over_the_wire(
    house: House, clock: FakeClock, usage_database: Database
) -> None:
    """Pieces of text/csv, with a name for a download; a refusal has none."""
    person = await house.person()
    event = make_event(UUID(person.user_id), clock.now(), credits=0, tool_name="-v")
    async with usage_database.transaction() as conn:
        await metering.write_events(conn, [event], {})
    stub = report_pb2_grpc.ReportServiceStub(house.usage_channel)
    request = report_pb2.ExportUsageRequest(
        start_time=to_timestamp(clock.now() - DAY), end_time=to_timestamp(clock.now() + DAY)
    )
    call = stub.ExportUsage(request, metadata=person.metadata)
    pieces = [answer.file async for answer in call]
    assert {piece.content_type for piece in pieces} == {"text/csv"}
    text = b"".join(piece.data for piece in pieces).decode()
    moment = event.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert text == f"event_id,time,tool_name,credits\r\n{event.id},{moment},'-v,0\r\n"
    named = dict(await call.initial_metadata())["content-disposition"]
    assert str(named).startswith('attachment; filename="usage-')
    request.end_time.CopyFrom(to_timestamp(clock.now() + 400 * DAY))
    refused = stub.ExportUsage(request, metadata=person.metadata)
    with pytest.raises(aio.AioRpcError) as error:
        await refused.read()
    assert refusal_of(error.value) == (StatusCode.OUT_OF_RANGE, "RANGE_TOO_LONG")
    assert "content-disposition" not in dict(await refused.initial_metadata())
    request.end_time.nanos = -1
    with pytest.raises(aio.AioRpcError) as error:
        await stub.ExportUsage(request, metadata=person.metadata).read()
    assert refusal_of(error.value) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
