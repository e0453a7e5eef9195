"""
Renders Envoy's whole configuration as one self-contained JSON text.

JSON users get the names of the contracts (snake_case, as in the .proto files and the
docs) and every field that has no value yet, so that a balance of zero is shown as
zero. Enums are names and int64 are strings, as protobuf's JSON mapping has them.
"""

import json
from base64 import b64encode
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from gateway import contracts, errors
from gateway.config import GatewaySettings
from gateway.contracts import ContractError, Route
from gateway.routes import ENVOY, FILTERS, GRACE_SECONDS, seconds, virtual_host

HERE = Path(__file__).parent
DESCRIPTORS = HERE.parent / "gen" / "finity.binpb"
# Calls on one connection before another is opened: several processes behind one port
# share the load by connection, not by call.
CALLS_PER_CONNECTION = 64
CONNECTION_SECONDS = 300
MAX_HEADERS = 100
MAX_HEADER_KIB = 32
# Answers are held back until their status is known; a page of 1,000 rows is far below.
MIN_BUFFER_BYTES = 4 * 1024 * 1024
SANE_ID = "size({id}) <= 64 && {id}.matches('^[!-~]+$') ? {id} : ''"


def render(settings: GatewaySettings, descriptors: bytes | Path = DESCRIPTORS) -> str:
    """Returns the configuration; ContractError or KeyError if a contract cannot be served."""
    data = descriptors.read_bytes() if isinstance(descriptors, Path) else descriptors
    routes = contracts.routes(data)
    if not routes:
        raise ContractError("no method of the contracts has an HTTP route")
    rooms = sorted({route.room for route in routes})
    config: dict[str, Any] = {
        "static_resources": {
            "listeners": [_listener(settings, _connection_manager(settings, data, routes))],
            "clusters": [_cluster(room, *settings.address(room)) for room in rooms],
        },
        "overload_manager": _overload(settings),
    }
    if settings.gateway_admin_port:
        config["admin"] = {"address": _address("127.0.0.1", settings.gateway_admin_port)}
    return json.dumps(config, indent=1)


def _listener(settings: GatewaySettings, manager: dict[str, Any]) -> dict[str, Any]:
    network = "envoy.filters.network.http_connection_manager"
    return {
        "name": "gateway",
        "address": _address(settings.gateway_host, settings.gateway_port),
        # A port that is taken must be an error, not a share of another process's calls.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": max(
            MIN_BUFFER_BYTES, settings.gateway_max_body_bytes * 2
        ),
        "filter_chains": [{"filters": [{"name": network, "typed_config": manager}]}],
    }


def _connection_manager(
    settings: GatewaySettings, data: bytes, routes: list[Route]
) -> dict[str, Any]:
    return {
        "@type": f"{ENVOY}extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "gateway",
        "server_name": "finity",
        "access_log": [_access_log()],
        "local_reply_config": errors.local_replies(),
        "route_config": {"virtual_hosts": [virtual_host(settings, routes)]},
        "http_filters": _filters(settings, data, routes),
        **_identity(),
        **_limits(settings),
    }


def _identity() -> dict[str, Any]:
    """Returns what the gateway believes of a request's headers: an id, if it is a sane one."""
    kept = SANE_ID.replace("{id}", "request.headers['x-request-id']")
    keep = {"key": "x-finity-id", "value": f"%CEL({kept})%"}
    restore = {"key": "x-request-id", "value": "%REQ(x-finity-id)%"}
    action = "OVERWRITE_IF_EXISTS_OR_ADD"
    mutations = [
        # Clients could steer Envoy's time limits and retries with these.
        {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
        {"remove": "x-finity-id"},
        {"append": {"header": keep, "append_action": action}},
        {"remove": "x-request-id"},
        {"append": {"header": restore, "append_action": action}},
        {"remove": "x-finity-id"},
    ]
    early = {
        "@type": f"{ENVOY}extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": mutations,
    }
    # Otherwise Envoy writes a tracing decision of its own into a client's UUID.
    ids = {
        "@type": f"{ENVOY}extensions.request_id.uuid.v3.UuidRequestIdConfig",
        "pack_trace_reason": False,
    }
    return {
        "request_id_extension": {"typed_config": ids},
        "early_header_mutation_extensions": [{"name": "sanitise", "typed_config": early}],
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
    }


def _limits(settings: GatewaySettings) -> dict[str, Any]:
    call = settings.gateway_timeout_seconds + GRACE_SECONDS
    return {
        "common_http_protocol_options": {"idle_timeout": "300s", "max_headers_count": MAX_HEADERS},
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 256 * 1024,
            "initial_connection_window_size": 1024 * 1024,
        },
        "max_request_headers_kb": MAX_HEADER_KIB,
        "request_headers_timeout": "10s",
        "request_timeout": seconds(call),
        "stream_idle_timeout": seconds(call * 2),
    }


def _filters(settings: GatewaySettings, data: bytes, routes: list[Route]) -> list[dict[str, Any]]:
    limit = settings.gateway_max_body_bytes
    return [
        _filter("cors", "cors.v3.Cors"),
        _filter("buffer", "buffer.v3.Buffer", max_request_bytes=limit),
        _filter("lua", "lua.v3.Lua", default_source_code={"inline_string": script(routes)}),
        _transcoder(data, routes, limit),
        _filter("router", "router.v3.Router", suppress_envoy_headers=True),
    ]


def _filter(name: str, kind: str, **config: Any) -> dict[str, Any]:
    typed = {"@type": f"{ENVOY}extensions.filters.http.{kind}", **config}
    return {"name": FILTERS + name, "typed_config": typed}


def _transcoder(data: bytes, routes: list[Route], limit: int) -> dict[str, Any]:
    return _filter(
        "grpc_json_transcoder",
        "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor_bin=b64encode(contracts.strip(data)).decode(),
        services=sorted({str(route.method.containing_service.full_name) for route in routes}),
        # The route table is written in HTTP paths; the gRPC path is not looked up again.
        match_incoming_request_route=True,
        convert_grpc_status=True,
        max_request_body_size=limit,
        max_response_body_size=MIN_BUFFER_BYTES,
        print_options={"always_print_primitive_fields": True, "preserve_proto_field_names": True},
        request_validation_options={
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
    )


def script(routes: list[Route]) -> str:
    """Returns strict.lua with the tables it needs from the contracts."""
    table = {}
    for route in routes:
        message = route.body_message
        body = message.full_name if message else bool(route.body)
        table[route.name] = {
            "body": body,
            "root": route.body.removeprefix("*"),
            "query": dict.fromkeys(route.query, True),
        }
    messages = [route.body_message for route in routes]
    shapes = contracts.shapes([message for message in messages if message])
    compact = (",", ":")
    bare = errors.bare_statuses()
    answers = {code: json.dumps(bare[code], separators=compact) for code in bare}
    tables = {"MESSAGES": shapes, "ROUTES": table, "BARE": answers, "NAMESPACE": errors.NAMESPACE}
    head = "".join(f"local {name} = {_lua(value)}\n" for name, value in tables.items())
    return head + (HERE / "strict.lua").read_text("utf-8")


def _lua(value: object) -> str:
    if isinstance(value, dict):
        items = (f"[{json.dumps(key)}]={_lua(item)}" for key, item in value.items())
        return "{" + ",".join(items) + "}"
    # A JSON string of ASCII is a Lua string too, and so are true and false.
    return json.dumps(value)


def _cluster(room: str, host: str, port: int) -> dict[str, Any]:
    options = {
        "@type": f"{ENVOY}extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {"max_connection_duration": seconds(CONNECTION_SECONDS)},
        "explicit_http_config": {
            "http2_protocol_options": {"max_concurrent_streams": CALLS_PER_CONNECTION}
        },
    }
    endpoint = {"endpoint": {"address": _address(host, port)}}
    limits = {"max_connections": 64, "max_pending_requests": 1024, "max_requests": 2048}
    return {
        "name": room,
        "type": "STATIC" if _is_ip(host) else "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [limits]},
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 60}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
        "load_assignment": {"cluster_name": room, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _overload(settings: GatewaySettings) -> dict[str, Any]:
    monitor = "downstream_connections.v3.DownstreamConnectionsConfig"
    config = {
        "@type": f"{ENVOY}extensions.resource_monitors.{monitor}",
        "max_active_downstream_connections": settings.gateway_max_connections,
    }
    name = "envoy.resource_monitors.global_downstream_max_connections"
    return {"resource_monitors": [{"name": name, "typed_config": config}]}


def _access_log() -> dict[str, Any]:
    # Never headers as such: they carry credentials. Never the query: it carries page tokens.
    line = {
        "time": "%START_TIME%",
        "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
        "path": "%PATH(NQ:ORIG_OR_PATH)%",
        "status": "%RESPONSE_CODE%",
        "duration_ms": "%DURATION%",
        "request_id": "%RESP(X-REQUEST-ID)%",
        "traceparent": "%REQ(TRACEPARENT)%",
        "received_bytes": "%BYTES_RECEIVED%",
        "sent_bytes": "%BYTES_SENT%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "upstream": "%UPSTREAM_CLUSTER%",
    }
    kind = f"{ENVOY}extensions.access_loggers.stream.v3.StdoutAccessLog"
    return {
        "name": "access",
        "typed_config": {"@type": kind, "log_format": {"json_format": line}},
    }
