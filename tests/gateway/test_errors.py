"""Every failure has one shape: google.rpc.Status as JSON with an ErrorInfo."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc import code_pb2, status_pb2

from gateway.errors import DOMAIN, GatewayReason
from tests.gateway.harness import MAX_BODY, Answer, Gateway, Rooms, refusal

HTTP_OF_CODE = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
JSON = {"content-type": "application/json"}
SECRET = "hunter2-secret"


def info(answer: Answer) -> dict[str, Any]:
    """Checks the one shape and returns its ErrorInfo."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]
    assert set(answer.json) == {"code", "message", "details"}
    assert answer.json["message"]
    json_format.Parse(answer.body, status_pb2.Status())
    first: dict[str, Any] = answer.json["details"][0]
    assert first["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert set(first) == {"@type", "reason", "domain", "metadata"}
    for internal in (b"127.0.0.1", b"10.0.0.1", b"upstream connect", b"envoy", b"grpc_json"):
        assert internal not in answer.body.lower()
    return first


def expect(answer: Answer, reason: GatewayReason) -> None:
    found = info(answer)
    assert (found["reason"], found["domain"]) == (reason.name, DOMAIN)
    assert (answer.status, answer.json["code"]) == (reason.value.http, reason.value.code)


def violation(answer: Answer) -> str:
    (bad,) = [d for d in answer.json["details"] if d["@type"].endswith("BadRequest")]
    return str(bad["field_violations"][0]["field"])


def test_a_refusal_comes_through_whole(gateway: Gateway) -> None:
    answer = gateway.call("GET", "/v1/users/7", headers={"x-answer": "refusal"})
    assert info(answer)["reason"] == "USER_NOT_FOUND"
    assert answer.status == 404
    assert json_format.Parse(answer.body, status_pb2.Status()) == refusal(retry=False)


def test_a_delay_becomes_retry_after_in_whole_seconds(gateway: Gateway) -> None:
    answer = gateway.call("GET", "/v1/users/7", headers={"x-answer": "retry"})
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")
    assert answer.json["details"][2]["retry_delay"] == "2.500s"


@pytest.mark.parametrize("name", HTTP_OF_CODE)
def test_a_bare_status_gets_the_shape(gateway: Gateway, name: str) -> None:
    code = code_pb2.Code.Value(name)
    answer = gateway.call("GET", "/v1/users/7", headers={"x-answer": f"status:{code}"})
    found = info(answer)
    assert (answer.status, answer.json["code"]) == (HTTP_OF_CODE[name], code)
    assert (found["reason"], found["metadata"]) == ("UPSTREAM_STATUS", {"status": name})


def test_a_bare_status_after_headers_gets_the_shape(gateway: Gateway) -> None:
    answer = gateway.call("GET", "/v1/users/7", headers={"x-answer": "late"})
    assert (answer.status, info(answer)["metadata"]) == (500, {"status": "INTERNAL"})


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/users/",
        "/v1/users/7:unknown",
        "/v1/users/7/",
        "/V1/users",
        "/finity.auth.v1.AuthService/Login",
        "/finity.usage.v1.UsageService/OpenAccount",
        "/%22%7D",
    ],
)
def test_unknown_paths(gateway: Gateway, path: str) -> None:
    expect(gateway.call("GET", path), GatewayReason.ROUTE_NOT_FOUND)
    expect(gateway.call("POST", path, {}), GatewayReason.ROUTE_NOT_FOUND)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/users", "POST, GET"),
        ("POST", "/v1/users/me", "GET"),
        ("GET", "/v1/users/me:setRole", "POST"),
        ("OPTIONS", "/v1/users", "POST, GET"),
        ("PATCH", "/v1/sessions", "POST"),
        ("POST", "/healthz", "GET"),
    ],
)
def test_wrong_methods(gateway: Gateway, method: str, path: str, allow: str) -> None:
    answer = gateway.call(method, path)
    expect(answer, GatewayReason.METHOD_NOT_ALLOWED)
    assert answer.headers["allow"] == allow


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"x",
        b'{"email":}',
        b'{"email":"a",}',
        b"{email:'a'}",
        b"{'email':'a'}",
        b'{"email" "a"}',
        b'{"email":"a"} {}',
        b'{"email":01}',
        b'{"email":1.}',
        b'{"email":+1}',
        b'{"email":NaN}',
        b'{"email":True}',
        b'{"email":"\n"}',
        b'{"email":"\\x"}',
        b'{"email":"\\u12"}',
        b'{"email":"a',
        b'{"email":["a",]}',
        b'{"email":["a"',
        b'{/**/"email":"a"}',
        b"[]",
        b'"a"',
        b"null",
        b'{"email":' + b"[" * 1000,
        b"\xef\xbb\xbf{}",
        b" ",
    ],
)
def test_bad_json(gateway: Gateway, rooms: Rooms, body: bytes) -> None:
    before = len(rooms.calls)
    expect(gateway.call("POST", "/v1/sessions", body, JSON), GatewayReason.INVALID_JSON)
    assert len(rooms.calls) == before


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/sessions", {"email": "a", "role": "x"}, "role"),
        ("/v1/sessions", {"": "a"}, ""),
        ("/v1/sessions", {"*": "a"}, "*"),
        ("/v1/sessions", {'a"}\\': "a"}, 'a\\"}\\\\'),
        ("/v1/usage", {"event": {}}, "event.event"),
        ("/v1/usage:batch", {"events": [{}, {"nope": {}}]}, "events[1].nope"),
        ("/v1/sessions", {"x" * 500: 1}, "x" * 100),
    ],
)
def test_unknown_fields(gateway: Gateway, path: str, body: object, field: str) -> None:
    answer = gateway.call("POST", path, body)
    expect(answer, GatewayReason.UNKNOWN_FIELD)
    if field:
        assert violation(answer) == field


def test_a_name_spelt_with_escapes_does_not_slip_through(gateway: Gateway) -> None:
    answer = gateway.call("POST", "/v1/sessions", b'{"\\u0065mail":"a"}', JSON)
    expect(answer, GatewayReason.UNKNOWN_FIELD)


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/v1/users?nope=1", "nope"),
        ("GET", "/v1/users?page_size=1&&nope", "nope"),
        ("GET", "/v1/users?page%5Fsize=1", "page%5Fsize"),
        ("GET", '/v1/users?a"b=1', 'a"b'),
        ("GET", "/v1/users/me?user_id=7", "user_id"),
        ("GET", "/v1/users/me?userId=7", "userId"),
        ("POST", "/v1/sessions?password=x", "password"),
        ("POST", "/v1/usage?event.credits=1", "event.credits"),
    ],
)
def test_unknown_query_parameters(gateway: Gateway, method: str, path: str, name: str) -> None:
    answer = gateway.call(method, path, {} if method == "POST" else None)
    expect(answer, GatewayReason.UNKNOWN_QUERY_PARAMETER)
    assert violation(answer) == name


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("GET", f"/v1/users?page_size={SECRET}", None, "page_size"),
        ("GET", f"/v1/users/me/usage?start_time={SECRET}", None, "start_time"),
        ("POST", "/v1/users/7:setRole", {"role": SECRET}, "role"),
        ("POST", "/v1/sessions", {"password": {"a": SECRET}}, None),
        ("POST", "/v1/usage:batch", {"events": [{"credits": SECRET}]}, "events[0].credits"),
        ("POST", "/v1/usage", {"credits": f'x: "{SECRET}'}, "event.credits"),
        ("POST", "/v1/users/7:setRole", {"user_id": "8"}, ""),
    ],
)
def test_values_that_do_not_fit_are_named_but_not_repeated(
    gateway: Gateway, method: str, path: str, body: object, field: str | None
) -> None:
    answer = gateway.call(method, path, body)
    if field is None:
        assert answer.status == 400
    else:
        expect(answer, GatewayReason.INVALID_VALUE)
        assert violation(answer) == field
    assert SECRET.encode() not in answer.body


def test_text_that_is_not_utf_8(gateway: Gateway) -> None:
    answer = gateway.call("POST", "/v1/sessions", b'{"password":"hunter\xff"}', JSON)
    expect(answer, GatewayReason.INVALID_VALUE)
    assert b"hunter" not in answer.body


def test_a_body_where_none_is_taken(gateway: Gateway) -> None:
    expect(gateway.call("GET", "/v1/users", {}), GatewayReason.UNEXPECTED_BODY)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "a/b; json"]
)
def test_bodies_that_are_not_json(gateway: Gateway, kind: str) -> None:
    answer = gateway.call("POST", "/v1/sessions", b"{}", {"content-type": kind})
    expect(answer, GatewayReason.UNSUPPORTED_MEDIA_TYPE)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_by_any_spelling(gateway: Gateway, kind: str) -> None:
    assert gateway.call("POST", "/v1/sessions", b"{}", {"content-type": kind}).status == 200


def test_grpc_callers_are_sent_away(gateway: Gateway, rooms: Rooms) -> None:
    before = len(rooms.calls)
    for path in ("/finity.usage.v1.UsageService/OpenAccount", "/v1/sessions"):
        answer = gateway.call("POST", path, b"\0\0\0\0\0", {"content-type": "application/grpc"})
        assert (answer.headers["grpc-status"], answer.body) == ("12", b"")
    assert len(rooms.calls) == before


def test_bodies_up_to_the_limit(gateway: Gateway) -> None:
    empty = json.dumps({"email": ""}).encode()
    body = json.dumps({"email": "x" * (MAX_BODY - len(empty))}).encode()
    assert gateway.call("POST", "/v1/sessions", body, JSON).status == 200
    expect(gateway.call("POST", "/v1/sessions", body + b" ", JSON), GatewayReason.BODY_TOO_LARGE)


def test_too_many_and_too_large_headers(gateway: Gateway) -> None:
    many = b"".join(b"x%d: 1\r\n" % number for number in range(120))
    for headers in (many, b"x: " + b"x" * 40_000 + b"\r\n"):
        raw = gateway.raw(b"GET /v1/users HTTP/1.1\r\nhost: a\r\n" + headers + b"\r\n")
        expect(raw, GatewayReason.HEADERS_TOO_LARGE)


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v1/users/..%2fme HTTP/1.1\r\nhost: a",
        b"GET /v1/users/a%00 HTTP/1.1\r\nhost: a",
        b"GET /v1/users HTTP/1.1",
        b"GARBAGE",
        b"BREW /v1/users HTTP/1.1\r\nhost: a",
        b"POST /v1/usage HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked",
    ],
)
def test_requests_that_are_not_good_http(gateway: Gateway, request_line: bytes) -> None:
    raw = gateway.raw(request_line + b"\r\nconnection: close\r\n\r\n")
    expect(raw, GatewayReason.MALFORMED_REQUEST)


def test_a_request_that_never_ends(impatient: Gateway) -> None:
    head = b"POST /v1/sessions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{"
    expect(impatient.raw(head), GatewayReason.REQUEST_TIMEOUT)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_room_that_is_down(cut_off: Gateway, method: str) -> None:
    answer = cut_off.call(method, "/v1/users")
    expect(answer, GatewayReason.UPSTREAM_UNAVAILABLE)
    assert answer.headers["retry-after"] == "1"
    assert answer.json["details"][-1]["retry_delay"] == "1s"


@pytest.mark.parametrize("path", ["/v1/users/me", "/v1/users/me/balance"])
def test_a_room_that_breaks_off(garbled: Gateway, path: str) -> None:
    expect(garbled.call("GET", path), GatewayReason.UPSTREAM_UNAVAILABLE)


def test_a_silent_room_and_those_who_wait_behind(cut_off: Gateway) -> None:
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda _: cut_off.call("GET", "/v1/users/7/balance"), range(4)))
    late = [answer for answer in answers if answer.status == 504]
    refused = [answer for answer in answers if answer.status == 503]
    assert (len(late), len(refused)) == (1, 3)
    expect(late[0], GatewayReason.UPSTREAM_TIMEOUT)
    for answer in refused:
        expect(answer, GatewayReason.OVERLOADED)


def test_an_answer_that_has_no_json_form(gateway: Gateway) -> None:
    answer = gateway.call("GET", "/v1/users/me", headers={"x-answer": "garbage"})
    expect(answer, GatewayReason.DEFECT)


def test_a_room_that_does_not_answer(impatient: Gateway) -> None:
    answer = impatient.call("GET", "/v1/users/me", headers={"x-answer": "slow"})
    # The room's own runtime notices first, for it was told a little less time.
    assert (answer.status, answer.json["code"]) == (504, code_pb2.DEADLINE_EXCEEDED)
    info(answer)
