"""Bodies: new events every time, in the wire forms of the calls."""

import json
from itertools import islice
from uuid import UUID

from finity.usage.v1 import reservation_pb2, usage_pb2

from benchmarks.bodies import EVENT_ID, USER_ID, Events, Pairs, Repeated, event_ids
from chassis.contract import validate
from chassis.ids import uuid7_time

USERS = ("11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222")
EVENT = usage_pb2.UsageEvent(event_id=EVENT_ID, user_id=USER_ID, tool_name="x", credits=1)


def test_event_ids_are_distinct_uuid7_in_order_of_time() -> None:
    ids = [UUID(text) for text in event_ids(2000)]
    assert len(set(ids)) == 2000
    times = [uuid7_time(one) for one in ids]
    assert times == sorted(times)


def test_a_batch_holds_distinct_events_that_keep_the_contract() -> None:
    template = usage_pb2.RecordUsageBatchRequest(events=[EVENT]).SerializeToString()
    bodies = list(Events(template, USERS, per_body=50, most_per_second=2).make(1.0))
    requests = [usage_pb2.RecordUsageBatchRequest.FromString(body) for body in bodies]
    events = [event for request in requests for event in request.events]
    for event in events:
        validate(event)
    assert len({event.event_id for event in events}) == 100
    assert {event.user_id for event in events} == set(USERS)


def test_pairs_name_a_new_reservation_twice() -> None:
    reserve = reservation_pb2.ReserveCreditsRequest(
        reservation_id=EVENT_ID, user_id=USER_ID, tool_name="x", credits=1
    )
    commit = reservation_pb2.CommitReservationRequest(reservation_id=EVENT_ID, credits=1)
    templates = reserve.SerializeToString(), commit.SerializeToString()
    bodies = list(Pairs(*templates, USERS, most_per_second=50).make(1.0))
    first = [reservation_pb2.ReserveCreditsRequest.FromString(body) for body in bodies[::2]]
    second = [reservation_pb2.CommitReservationRequest.FromString(body) for body in bodies[1::2]]
    for request in (*first, *second):
        validate(request)
    ids = [request.reservation_id for request in first]
    assert ids == [request.reservation_id for request in second]
    assert len(set(ids)) == 50
    assert {request.user_id for request in first} == set(USERS)


def test_json_is_filled_like_protobuf() -> None:
    template = json.dumps({"event_id": EVENT_ID, "user_id": USER_ID}).encode()
    (body,) = Events(template, USERS[:1], per_body=1, most_per_second=1).make(1.0)
    assert json.loads(body)["user_id"] == USERS[0]
    assert json.loads(body)["event_id"] != EVENT_ID


def test_repeated_bodies_never_end() -> None:
    assert list(islice(Repeated((b"a", b"b")).make(0.1), 5)) == [b"a", b"b", b"a", b"b", b"a"]
