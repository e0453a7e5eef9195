"""A user looks at its usage in a browser: sums, and a file that comes in pieces through Envoy."""

import asyncio
import csv
import io
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from finity.usage.v1 import usage_pb2

from chassis.ids import uuid7
from tests.factories import make_event, to_wire
from tests.fakes import FakeClock
from tests.gateway.harness import Answer, Gateway, running
from tests.running import House, Person, open_house

CALLS = 2300


async def record(house: House, clock: FakeClock, person: Person) -> Sequence[str]:
    """Records calls, a minute apart; returns their ids, the newest first."""
    now = clock.now()
    events = [
        make_event(
            UUID(person.user_id),
            now - timedelta(minutes=number),
            event_id=uuid7(now - timedelta(minutes=number)),
            tool_name="write" if number % 2 else "-search",
        )
        for number in range(CALLS)
    ]
    for start in range(0, CALLS, 1000):
        batch = usage_pb2.RecordUsageBatchRequest(
            events=[to_wire(event) for event in events[start : start + 1000]]
        )
        await house.usage.RecordUsageBatch(batch, metadata=house.service)
    return [str(event.id) for event in events]


async def get(gateway: Gateway, person: Person, path: str) -> Answer:
    return await asyncio.to_thread(gateway.call, "GET", path, None, dict(person.metadata))


async def test_sums_and_a_download_through_the_gateway(
    database_url: str, redis_url: str, clock: FakeClock, tmp_path: Path
) -> None:
    """The sums agree with the calls, the file is whole and named, refusals are JSON."""
    async with open_house(database_url, redis_url, "native", clock) as house:
        person, other = await house.person(credits=10_000), await house.person()
        ids = await record(house, clock, person)
        day = clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
        start = (day - timedelta(days=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
        end = (day + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        span = f"start_time={start}&end_time={end}"
        with running(
            tmp_path,
            auth_address=house.auth_address,
            usage_address=house.usage_address,
            cors_origins="https://app.example.com",
        ) as gateway:
            path = f"/v1/users/me/usage:summarize?{span}"
            groups = "&group_by=GROUP_BY_TOOL&group_by=GROUP_BY_DAY&time_zone=America%2FNew_York"
            answer = await get(gateway, person, path + groups)
            assert answer.status == 200, answer.body
            sums = answer.json["summaries"]
            assert sum(int(each["calls"]) for each in sums) == CALLS
            assert {each["tool_name"] for each in sums} == {"-search", "write"}
            zone = "&group_by=GROUP_BY_DAY&time_zone=Asia%2FKolkata"
            answer = await get(gateway, person, path + zone)
            assert (answer.status, reason(answer)) == (400, "TIME_ZONE_NOT_WHOLE_HOURS")

            path = f"/v1/users/me/usage:export?{span}"
            answer = await get(gateway, person, path)
            assert answer.status == 200, answer.body
            assert answer.headers["content-type"] == "text/csv"
            name = f"usage-{start[:10]}-{end[:10]}.csv"
            assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert not [header for header in answer.headers if header.startswith("grpc-")]
            assert answer.body.endswith(b"\r\n")
            rows = list(csv.reader(io.StringIO(answer.body.decode(), newline="")))
            assert [row[0] for row in rows[1:]] == ids
            assert {row[2] for row in rows[1:]} == {"'-search", "write"}

            denied = await get(gateway, other, path.replace("/me/", f"/{person.user_id}/"))
            assert (denied.status, reason(denied)) == (403, "SUBJECT_DENIED")
            assert denied.headers["content-type"] == "application/json"
            assert "content-disposition" not in denied.headers
            long = path.replace("start_time=2", "start_time=1")
            assert (await get(gateway, person, long)).status == 400


def reason(answer: Answer) -> str:
    (info,) = [each for each in answer.json["details"] if "reason" in each]
    return str(info["reason"])
