"""The route table: one route per HTTP binding, and answers of our own for everything else."""

from collections.abc import Iterable
from typing import Any

from gateway.config import GatewaySettings
from gateway.contracts import Route

ENVOY = "type.googleapis.com/envoy."
FILTERS = "envoy.filters.http."
# What the gateway adds to the time a service is given, so that the inner refusal wins.
GRACE_SECONDS = 0.5
# A download takes as long as its reader; it is bounded by the service and by silence.
FILE_SECONDS = 600.0
# Answers any cache may keep; all others are private to the caller.
CACHED = {"finity.auth.v1.AuthService.GetSigningKeys": "public, max-age=600"}
CORS_MAX_AGE_SECONDS = 600
EXPOSED = "x-request-id, retry-after, content-disposition"


def virtual_host(settings: GatewaySettings, routes: list[Route]) -> dict[str, Any]:
    """Returns the one virtual host; its routes are tried from the top."""
    return {
        "name": "gateway",
        "domains": ["*"],
        "typed_per_filter_config": {f"{FILTERS}cors": _cors(settings.cors_origins or ())},
        # Bodies of ours are gRPC without compression, whatever the client says about itself.
        "request_headers_to_remove": ["grpc-encoding", "grpc-accept-encoding", "cookie"],
        "response_headers_to_add": [
            _set("cache-control", "no-store", "ADD_IF_ABSENT"),
            _set("x-content-type-options", "nosniff"),
            *_shared_with(settings.cors_origins or ()),
        ],
        "routes": [
            _healthz(),
            *_preflights(settings.cors_origins or (), routes),
            # gRPC callers would otherwise slip past the transcoder with paths of their own.
            _direct({"prefix": "/", "headers": [_content_type("application/grpc.*")]}, 415),
            *(entry for route in routes for entry in _entries(settings, route)),
            *_wrong_methods(routes),
            _direct({"prefix": "/"}, 404),
        ],
    }


def _healthz() -> dict[str, Any]:
    # Says that the gateway serves and nothing of the rooms: one that is down must not
    # make load balancers drop the gateway, and with it all the others.
    answer = _direct({"path": "/healthz", "headers": [_method("GET")]}, 200)
    answer["direct_response"]["body"] = {"inline_string": '{"status":"SERVING"}'}
    answer["response_headers_to_add"] = [_set("content-type", "application/json")]
    return answer


def _entries(settings: GatewaySettings, route: Route) -> Iterable[dict[str, Any]]:
    match = {"safe_regex": {"regex": route.pattern}, "headers": [_method(route.verb)]}
    if route.body:
        # A body without a type is taken for JSON; one with another type never is.
        typed = {"name": "content-type", "present_match": True}
        other = {**_content_type(r"(?i)application/json\s*(;.*)?"), "invert_match": True}
        yield _direct({**match, "headers": [_method(route.verb), typed, other]}, 415)
    yield {"match": match, **_forward(settings, route)}


def _forward(settings: GatewaySettings, route: Route) -> dict[str, Any]:
    given = FILE_SECONDS if route.is_file else settings.gateway_timeout_seconds
    entry: dict[str, Any] = {
        "route": {
            "cluster": route.room,
            "timeout": seconds(given + GRACE_SECONDS),
            # Only what never reached the service is sent again; whether a call that
            # did may be repeated is known to the client alone.
            "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2},
        },
        "request_headers_to_add": [_set("grpc-timeout", f"{round(given * 1000)}m")],
        "typed_per_filter_config": {
            f"{FILTERS}lua": {
                "@type": f"{ENVOY}extensions.filters.http.lua.v3.LuaPerRoute",
                "filter_context": {"route": route.name},
            }
        },
    }
    if caching := CACHED.get(route.method.full_name):
        entry["response_headers_to_add"] = [_set("cache-control", caching)]
    return entry


def _wrong_methods(routes: list[Route]) -> Iterable[dict[str, Any]]:
    allowed: dict[str, list[str]] = {r"/healthz": ["GET"]}
    for route in routes:
        allowed.setdefault(route.pattern, []).append(route.verb)
    for pattern, verbs in allowed.items():
        answer = _direct({"safe_regex": {"regex": pattern}}, 405)
        answer["response_headers_to_add"] = [_set("allow", ", ".join(verbs))]
        yield answer


def _direct(match: dict[str, Any], status: int) -> dict[str, Any]:
    off = {"@type": f"{ENVOY}config.route.v3.FilterConfig", "disabled": True}
    names = ("buffer", "grpc_json_transcoder")
    return {
        "match": match,
        "direct_response": {"status": status},
        "typed_per_filter_config": {FILTERS + name: off for name in names},
    }


def _cors(origins: tuple[str, ...]) -> dict[str, Any]:
    any_origin = {"safe_regex": {"regex": ".*"}}
    return {
        "@type": f"{ENVOY}extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [
            any_origin if origin == "*" else {"exact": origin} for origin in origins
        ],
        "allow_methods": "GET, POST, PUT, PATCH, DELETE",
        "allow_headers": "authorization, content-type, x-request-id, traceparent, tracestate",
        "expose_headers": EXPOSED,
        "max_age": str(CORS_MAX_AGE_SECONDS),
        # Tokens travel in a header that pages set themselves; cookies are never read.
        "allow_credentials": False,
    }


def _preflights(origins: tuple[str, ...], routes: list[Route]) -> Iterable[dict[str, Any]]:
    # Envoy's filter answers preflights only on routes that lead to a service. Origins
    # that are not allowed must not match: they would be sent on.
    for origin in origins:
        wanted = {"safe_regex": {"regex": ".*"}} if origin == "*" else {"exact": origin}
        headers = [
            _method("OPTIONS"),
            {"name": "origin", "string_match": wanted},
            {"name": "access-control-request-method", "present_match": True},
        ]
        yield {
            "match": {"prefix": "/", "headers": headers},
            "route": {"cluster": routes[0].room},
        }


def _shared_with(origins: tuple[str, ...]) -> Iterable[dict[str, Any]]:
    # The filter passes over answers of our own, and pages should be able to read those too.
    if origins:
        names = ", ".join(f"'{origin}'" for origin in origins)
        allowed = "true" if "*" in origins else f"request.headers['origin'] in [{names}]"
        value = f"%CEL({allowed} ? request.headers['origin'] : '')%"
        yield _set("access-control-allow-origin", value, "ADD_IF_ABSENT")
        yield _set("access-control-expose-headers", EXPOSED, "ADD_IF_ABSENT")


def _method(verb: str) -> dict[str, Any]:
    return {"name": ":method", "string_match": {"exact": verb}}


def _content_type(pattern: str) -> dict[str, Any]:
    return {"name": "content-type", "string_match": {"safe_regex": {"regex": pattern}}}


def _set(name: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> dict[str, Any]:
    return {"header": {"key": name, "value": value}, "append_action": action}


def seconds(value: float) -> str:
    """Returns a google.protobuf.Duration as JSON."""
    return f"{value:.3f}s"
