"""
Every failure the gateway itself can answer, in the one shape all failures have.

The body is google.rpc.Status as JSON, with an ErrorInfo whose domain is
"gateway.finity" and whose reason is a member of GatewayReason. Services' refusals
come through as they are, with their own domain.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from chassis.errors import Code

DOMAIN = "gateway.finity"
TYPES = "type.googleapis.com/"
# Where strict.lua leaves its reason for the mappers below.
NAMESPACE = "finity.gateway"
# What a client should wait before it sends the same call again.
RETRY_DELAY = "1s"
# What strict.lua or the transcoder found; they know the request and nothing of the house.
_REPLY = "%LOCAL_REPLY_BODY%"


@dataclass(frozen=True, slots=True)
class Failure:
    """How one reason looks on the wire."""

    http: int
    code: Code
    message: str
    retry: bool = False


class GatewayReason(Enum):
    """ErrorInfo.reason of the gateway's own failures; the value says how it is answered."""

    # The request is not one of the contracts' routes.
    ROUTE_NOT_FOUND = Failure(404, Code.NOT_FOUND, "No route has this path.")
    METHOD_NOT_ALLOWED = Failure(
        405, Code.UNIMPLEMENTED, "This path does not take this method; see the Allow header."
    )
    UNSUPPORTED_MEDIA_TYPE = Failure(
        415, Code.INVALID_ARGUMENT, "The body must be JSON: send content-type: application/json."
    )
    # The request does not fit its contract.
    INVALID_JSON = Failure(
        400,
        Code.INVALID_ARGUMENT,
        f"The body is not JSON (RFC 8259), too deep or a name too long: see character {_REPLY}.",
    )
    UNKNOWN_FIELD = Failure(
        400, Code.INVALID_ARGUMENT, f'The body has a field the contract does not: "{_REPLY}".'
    )
    UNKNOWN_QUERY_PARAMETER = Failure(
        400, Code.INVALID_ARGUMENT, f'This route has no query parameter "{_REPLY}".'
    )
    UNEXPECTED_BODY = Failure(400, Code.INVALID_ARGUMENT, "This route takes no body.")
    INVALID_VALUE = Failure(
        400,
        Code.INVALID_ARGUMENT,
        "A value does not fit its field, contradicts the path or is not UTF-8.",
    )
    # The request is not good HTTP, or too much of it.
    MALFORMED_REQUEST = Failure(
        400, Code.INVALID_ARGUMENT, "The request is not well-formed HTTP or its path is ambiguous."
    )
    BODY_TOO_LARGE = Failure(413, Code.INVALID_ARGUMENT, "The body is larger than allowed.")
    HEADERS_TOO_LARGE = Failure(
        431, Code.INVALID_ARGUMENT, "The headers are too many or too large."
    )
    REQUEST_TIMEOUT = Failure(408, Code.DEADLINE_EXCEEDED, "The request took too long to arrive.")
    # The service behind the route did not answer.
    OVERLOADED = Failure(
        503, Code.UNAVAILABLE, "Too many calls are waiting for the service.", retry=True
    )
    UPSTREAM_UNAVAILABLE = Failure(503, Code.UNAVAILABLE, "The service did not answer.", retry=True)
    UPSTREAM_TIMEOUT = Failure(504, Code.DEADLINE_EXCEEDED, "The service did not answer in time.")
    # A service answered a bare gRPC status; its text is withheld, for nobody wrote it for callers.
    UPSTREAM_STATUS = Failure(500, Code.INTERNAL, "The service refused the call.")
    DEFECT = Failure(500, Code.INTERNAL, "The gateway could not handle the call.")


def status(
    failure: Failure, reason: str, *, field: str = "", metadata: dict[str, str] | None = None
) -> dict[str, Any]:
    """Returns google.rpc.Status as JSON; field adds a BadRequest naming what is wrong."""
    info = {
        "@type": TYPES + "google.rpc.ErrorInfo",
        "reason": reason,
        "domain": DOMAIN,
        "metadata": metadata or {},
    }
    details: list[dict[str, Any]] = [info]
    if field:
        violation = {"field": field, "description": failure.message, "reason": reason}
        details.append({"@type": TYPES + "google.rpc.BadRequest", "field_violations": [violation]})
    if failure.retry:
        details.append({"@type": TYPES + "google.rpc.RetryInfo", "retry_delay": RETRY_DELAY})
    return {"code": int(failure.code), "message": failure.message, "details": details}


def bare_statuses() -> dict[str, dict[str, Any]]:
    """Returns, by gRPC code, the answer to a status that came without an ErrorInfo."""
    base = GatewayReason.UPSTREAM_STATUS
    retryable = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED}
    return {
        str(code.value): status(
            Failure(0, code, base.value.message, retry=code in retryable),
            base.name,
            metadata={"status": code.name},
        )
        for code in Code
    }


def local_replies() -> dict[str, Any]:
    """Returns Envoy's local_reply_config: which of its own failures is which reason.

    The first mapper that fits decides. Answers below 400 keep their body.
    """
    return {
        "mappers": [
            _grpc_caller(),
            *(_mapper(reason, _script_says(reason)) for reason in _BY_SCRIPT),
            _mapper(GatewayReason.ROUTE_NOT_FOUND, _transcoder(400, "{NOT_FOUND}")),
            _mapper(GatewayReason.INVALID_VALUE, _transcoder(400)),
            _mapper(GatewayReason.DEFECT, _transcoder(502)),
            _mapper(GatewayReason.OVERLOADED, {"response_flag_filter": {"flags": ["UO"]}}),
            *(_mapper(reason, _status_is(reason.value.http)) for reason in _BY_STATUS),
            _mapper(GatewayReason.UPSTREAM_UNAVAILABLE, _status_is(502)),
            _mapper(GatewayReason.MALFORMED_REQUEST, _status_below(500)),
            _mapper(GatewayReason.DEFECT, _status_from(500)),
        ]
    }


_BY_SCRIPT = (
    GatewayReason.INVALID_JSON,
    GatewayReason.UNKNOWN_FIELD,
    GatewayReason.UNKNOWN_QUERY_PARAMETER,
    GatewayReason.UNEXPECTED_BODY,
)
# Of these the text names the field. The transcoder's goes on with the value, which may
# be a secret: strict.lua cuts it off.
_NAMED = {
    GatewayReason.UNKNOWN_FIELD,
    GatewayReason.UNKNOWN_QUERY_PARAMETER,
    GatewayReason.INVALID_VALUE,
}
_BY_STATUS = (
    GatewayReason.ROUTE_NOT_FOUND,
    GatewayReason.METHOD_NOT_ALLOWED,
    GatewayReason.UNSUPPORTED_MEDIA_TYPE,
    GatewayReason.BODY_TOO_LARGE,
    GatewayReason.HEADERS_TOO_LARGE,
    GatewayReason.REQUEST_TIMEOUT,
    GatewayReason.UPSTREAM_UNAVAILABLE,
    GatewayReason.UPSTREAM_TIMEOUT,
)
_ENVOY = "type.googleapis.com/envoy."


def _mapper(reason: GatewayReason, matches: dict[str, Any]) -> dict[str, Any]:
    failure = reason.value
    field = _REPLY if reason in _NAMED else ""
    return {
        "filter": matches,
        "status_code": failure.http,
        "body_format_override": {"json_format": status(failure, reason.name, field=field)},
        "headers_to_add": [
            # Requests refused before they were read have no id yet.
            {
                "header": {"key": "x-request-id", "value": "%UNIQUE_ID%"},
                "append_action": "ADD_IF_ABSENT",
            },
            {
                "header": {"key": "cache-control", "value": "no-store"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            },
        ],
    }


def _grpc_caller() -> dict[str, Any]:
    # A gRPC client reads a status and not a body; it is in the wrong place anyway.
    grpc = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    # The transcoder turns JSON requests into gRPC ones; those have an original path.
    itself = {"name": "x-envoy-original-path", "present_match": True, "invert_match": True}
    filters = [{"header_filter": {"header": header}} for header in (grpc, itself)]
    text = "The gateway speaks JSON; call the service's own address for gRPC."
    return {
        "filter": {"and_filter": {"filters": filters}},
        "status_code": 404,
        "body_format_override": {"text_format_source": {"inline_string": text}},
    }


def _script_says(reason: GatewayReason) -> dict[str, Any]:
    matcher = {
        "filter": NAMESPACE,
        "path": [{"key": "reason"}],
        "value": {"string_match": {"exact": reason.name}},
    }
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}}


def _transcoder(http: int, status: str = "") -> dict[str, Any]:
    """Returns a filter for what the transcoder refuses: 400 a request, 502 a service's answer."""
    failure = f"grpc_json_transcode_failure{status}"
    config = {
        "@type": f"{_ENVOY}extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        "expression": f"response.code_details.contains('{failure}')",
    }
    details = {"extension_filter": {"name": "cel", "typed_config": config}}
    return {"and_filter": {"filters": [_status_is(http), details]}}


def _status_is(code: int) -> dict[str, Any]:
    return _compare("EQ", code)


def _status_from(code: int) -> dict[str, Any]:
    return _compare("GE", code)


def _status_below(code: int) -> dict[str, Any]:
    return {"and_filter": {"filters": [_compare("GE", 400), _compare("LE", code - 1)]}}


def _compare(operation: str, code: int) -> dict[str, Any]:
    value = {"default_value": code, "runtime_key": "finity.unused"}
    return {"status_code_filter": {"comparison": {"op": operation, "value": value}}}
