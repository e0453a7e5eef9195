"""Every method with a JSON route, called once: Envoy, rooms, PostgreSQL and Valkey are real."""

import asyncio
from pathlib import Path

from finity.auth.v1 import auth_pb2
from finity.options.v1 import options_pb2
from google.protobuf import json_format

from chassis.contract import Method
from gateway.contracts import Route, routes
from gateway.render import DESCRIPTORS
from tests.contracts.descriptors import ROOMS, methods
from tests.contracts.requests import request_for
from tests.contracts.requests.given import Given
from tests.contracts.test_access import fresh
from tests.fakes import FakeClock
from tests.gateway.harness import Gateway, message_class, running
from tests.gateway.translate import translate
from tests.running import House, open_house

OK = 200
METHODS = {method.path: method for room in ROOMS for method in methods(room)}
# Routes of rooms that are served; of streams only files have one.
ROUTES = [route for route in routes(DESCRIPTORS.read_bytes()) if route.room in ROOMS]


async def test_every_method_answers_in_json(
    database_url: str, redis_url: str, clock: FakeClock, tmp_path: Path
) -> None:
    """A valid request by a caller it admits answers 200 with its response type in JSON."""
    async with open_house(database_url, redis_url, "native", clock) as house:
        with running(
            tmp_path, auth_address=house.auth_address, usage_address=house.usage_address
        ) as gateway:
            found = {
                f"{route.method.full_name} {route.name}": await outcome(
                    house, gateway, clock, route
                )
                for route in ROUTES
            }
    assert {route.room for route in ROUTES} == set(ROOMS)
    assert found == dict.fromkeys(found, OK)


async def outcome(house: House, gateway: Gateway, clock: FakeClock, route: Route) -> int | str:
    """Returns 200, or else what came instead."""
    method = METHODS[f"/{route.method.containing_service.full_name}/{route.method.name}"]
    given = await given_for(house, clock, method)
    path, body = translate(route, await request_for(method, given))
    # The rooms run in this very loop.
    answer = await asyncio.to_thread(gateway.call, route.verb, path, body, dict(given.metadata))
    if answer.status != OK:
        return f"{answer.status} {answer.body.decode()}"
    if route.is_file and answer.headers["content-type"] != "application/json":
        return OK
    if answer.headers["content-type"] != "application/json":
        return f"200 in {answer.headers['content-type']}"
    try:
        json_format.Parse(answer.body, message_class(route.method.output_type.full_name)())
    except json_format.ParseError as error:
        return f"200 with another message: {error}"
    return OK


async def given_for(house: House, clock: FakeClock, method: Method) -> Given:
    """Somebody new to be asked about, and a new caller of a kind the method admits."""
    other = await house.person()
    if options_pb2.PUBLIC in method.allow:
        return Given(house, clock, other)
    if options_pb2.USER in method.allow:
        caller, subject = await house.person(), "me"
    elif options_pb2.ADMIN in method.allow:
        caller, subject = await house.person(role=auth_pb2.ROLE_ADMIN), other.user_id
    else:
        return Given(house, clock, other, other.user_id, house.service)
    return Given(house, clock, other, subject, await fresh(house, caller), caller)
