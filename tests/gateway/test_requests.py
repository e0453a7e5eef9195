"""What goes through: routes, values, headers, limits on time, caches and pages of other origins."""

import json
import re
from typing import Any

import pytest
from finity.auth.v1 import auth_pb2
from finity.usage.v1 import usage_pb2
from google.protobuf import json_format

from gateway.contracts import Route, routes
from gateway.render import DESCRIPTORS
from gateway.routes import FILE_SECONDS
from tests.gateway.harness import ORIGIN, TIMEOUT, Answer, Gateway, Rooms, message_class

ROUTES = routes(DESCRIPTORS.read_bytes())
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PREFLIGHT = {"access-control-request-method": "POST"}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_annotated_method_is_reachable(gateway: Gateway, rooms: Rooms, route: Route) -> None:
    path = re.sub(r"{[^}]+}", "me", route.template)
    answer = gateway.call(route.verb, path, {} if route.body else None)
    service = route.method.containing_service.full_name
    assert rooms.calls[-1].method == f"/{service}/{route.method.name}"
    assert answer.status == 200, answer.body
    if route.is_file:
        return
    assert answer.headers["content-type"] == "application/json"
    response = message_class(route.method.output_type.full_name)()
    json_format.Parse(answer.body, response)


def test_values_arrive_from_path_query_and_body(gateway: Gateway, rooms: Rooms) -> None:
    gateway.call("GET", "/v1/users/me/usage?page_size=7&start_time=2026-01-02T03:04:05Z")
    listed = rooms.calls[-1].message(usage_pb2.ListUsageRequest)
    assert (listed.user_id, listed.page_size) == ("me", 7)
    assert listed.start_time.ToJsonString() == "2026-01-02T03:04:05Z"
    gateway.call("POST", "/v1/users/7/credits:grant", {"amount": "12", "sourceRef": 'ü "\\ \u2028'})
    granted = rooms.calls[-1].message(usage_pb2.GrantCreditsRequest)
    assert (granted.user_id, granted.amount) == ("7", 12)
    assert granted.source_ref == 'ü "\\ \u2028'
    gateway.call("POST", "/v1/usage", {"tool_name": "a", "credits": 3})
    assert rooms.calls[-1].message(usage_pb2.RecordUsageRequest).event.credits == 3
    events = [{"credits": str(number)} for number in range(500)]
    gateway.call("POST", "/v1/usage:batch", {"events": events})
    assert len(rooms.calls[-1].message(usage_pb2.RecordUsageBatchRequest).events) == 500


def test_answers_have_contract_names_and_show_zeros(gateway: Gateway, rooms: Rooms) -> None:
    balance = usage_pb2.Balance(user_id="7")
    method = "/finity.usage.v1.UsageService/GetBalance"
    rooms.responses[method] = usage_pb2.GetBalanceResponse(balance=balance)
    shown = gateway.call("GET", "/v1/users/7/balance").json["balance"]
    assert shown == {
        "user_id": "7",
        "available": "0",
        "granted": "0",
        "used": "0",
        "reserved": "0",
        "version": "0",
    }
    method = "/finity.auth.v1.AuthService/GetUser"
    rooms.responses[method] = auth_pb2.GetUserResponse(user=auth_pb2.User(role=auth_pb2.ROLE_PRO))
    assert gateway.call("GET", "/v1/users/me").json["user"]["role"] == "ROLE_PRO"


def test_no_body_is_an_empty_request(gateway: Gateway) -> None:
    assert gateway.call("POST", "/v1/sessions:logout").json == {}


def test_grpc_headers_stay_inside(gateway: Gateway) -> None:
    answer = gateway.call("GET", "/v1/users")
    assert not [name for name in answer.headers if name.startswith(("grpc-", "x-envoy-"))]
    assert answer.headers["server"] == "finity"


def test_paths_are_normalised(gateway: Gateway, rooms: Rooms) -> None:
    gateway.call("GET", "//v1/./users/../users/me")
    assert rooms.calls[-1].message(auth_pb2.GetUserRequest).user_id == "me"


def test_credentials_and_trace_pass_unchanged(gateway: Gateway, rooms: Rooms) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    gateway.call("GET", "/v1/users", headers={"authorization": "Bearer a.b", "traceparent": trace})
    seen = rooms.calls[-1].metadata
    assert (seen["authorization"], seen["traceparent"]) == ("Bearer a.b", trace)


def test_clients_cannot_steer_envoy(gateway: Gateway, rooms: Rooms) -> None:
    sent = {
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-original-path": "/spoofed",
        "x-envoy-anything": "1",
        "x-forwarded-for": "1.2.3.4",
        "grpc-timeout": "1n",
        "grpc-encoding": "gzip",
        "cookie": "a=b",
    }
    answer = gateway.call("GET", "/v1/users", headers=sent)
    seen = rooms.calls[-1].metadata
    assert answer.status == 200
    assert seen["x-envoy-original-path"] == "/v1/users"
    assert not seen["x-forwarded-for"].endswith("1.2.3.4")
    assert seen.keys().isdisjoint({"x-envoy-anything", "x-envoy-upstream-rq-timeout-ms", "cookie"})


def test_a_file_may_take_as_long_as_its_reader(gateway: Gateway, rooms: Rooms) -> None:
    (route,) = [route for route in ROUTES if route.is_file]
    gateway.call(route.verb, route.template.replace("{user_id}", "me"))
    remaining = rooms.calls[-1].time_remaining
    assert remaining is not None
    assert TIMEOUT < remaining <= FILE_SECONDS


def test_services_learn_their_deadline(gateway: Gateway, rooms: Rooms) -> None:
    gateway.call("GET", "/v1/users")
    remaining = rooms.calls[-1].time_remaining
    assert remaining is not None
    assert TIMEOUT / 2 < remaining <= TIMEOUT


@pytest.mark.parametrize(
    "sent", ["0190aaaa-0000-7000-8000-000000000000", "job/7:retry=1", "!" * 64]
)
def test_a_sane_request_id_is_kept(gateway: Gateway, rooms: Rooms, sent: str) -> None:
    answer = gateway.call("GET", "/v1/users", headers={"x-request-id": sent})
    assert answer.headers["x-request-id"] == sent
    assert rooms.calls[-1].metadata["x-request-id"] == sent
    refused = gateway.call("GET", "/nowhere", headers={"x-request-id": sent})
    assert refused.headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "with space", "x" * 65, "caf\xe9"])
def test_any_other_request_id_is_replaced(gateway: Gateway, rooms: Rooms, sent: str) -> None:
    answer = gateway.call("GET", "/v1/users", headers={"x-request-id": sent})
    assert UUID.fullmatch(answer.headers["x-request-id"])
    assert rooms.calls[-1].metadata["x-request-id"] == answer.headers["x-request-id"]


def test_only_the_key_set_may_be_cached(gateway: Gateway) -> None:
    keys = gateway.call("GET", "/.well-known/jwks.json")
    assert keys.headers["cache-control"] == "public, max-age=600"
    failed = gateway.call("GET", "/.well-known/jwks.json", headers={"x-answer": "status:14"})
    assert failed.headers["cache-control"] == "no-store"
    assert gateway.call("GET", "/v1/users").headers["cache-control"] == "no-store"


def test_healthz_speaks_for_the_gateway_alone(gateway: Gateway, cut_off: Gateway) -> None:
    for served in (gateway, cut_off):
        answer = served.call("GET", "/healthz")
        assert (answer.status, answer.json) == (200, {"status": "SERVING"})
        assert answer.headers["content-type"] == "application/json"


def test_the_log_has_no_query_and_no_credentials(gateway: Gateway) -> None:
    sent = {"authorization": "Bearer secret-token", "x-request-id": "logged-call"}
    gateway.call("GET", "/v1/users?page_token=secret-page", headers=sent)
    entry = gateway.logged("logged-call")
    assert (entry["method"], entry["path"], entry["status"]) == ("GET", "/v1/users", 200)
    assert "secret" not in json.dumps(entry)
    assert {"duration_ms", "flags"} <= entry.keys()


def shared(answer: Answer) -> Any:
    return answer.headers.get("access-control-allow-origin")


def test_preflight_of_an_allowed_origin(gateway: Gateway) -> None:
    answer = gateway.call("OPTIONS", "/v1/sessions", headers={"origin": ORIGIN, **PREFLIGHT})
    assert answer.status == 200
    assert shared(answer) == ORIGIN
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in answer.headers


def test_other_origins_get_no_permission(gateway: Gateway) -> None:
    evil = {"origin": f"{ORIGIN}.evil.example"}
    assert gateway.call("OPTIONS", "/v1/sessions", headers={**evil, **PREFLIGHT}).status == 405
    assert shared(gateway.call("GET", "/v1/users", headers=evil)) is None


@pytest.mark.parametrize(
    ("path", "answer"), [("/v1/users", ""), ("/v1/users", "refusal"), ("/nowhere", "")]
)
def test_pages_can_read_answers_and_failures(gateway: Gateway, path: str, answer: str) -> None:
    got = gateway.call("GET", path, headers={"origin": ORIGIN, "x-answer": answer})
    assert shared(got) == ORIGIN
    assert "x-request-id" in got.headers["access-control-expose-headers"]
