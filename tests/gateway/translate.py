"""Turns a request message into the HTTP request its route describes (google/api/http.proto)."""

import json
from typing import Any
from urllib.parse import quote, urlencode

from google.protobuf import json_format
from google.protobuf.message import Message

from gateway.contracts import VARIABLE, Route


def translate(route: Route, request: Message) -> tuple[str, Any]:
    """Returns path, with its query, and body; None is no body."""
    fields = json_format.MessageToDict(request, preserving_proto_field_name=True)
    path = VARIABLE.sub(lambda found: quote(fields[found["field"]], safe=""), route.template)
    left = {name: value for name, value in fields.items() if name not in route.bound}
    if route.body == "*":
        return path, left
    body = left.pop(route.body, {}) if route.body else None
    query = {name: _spelt(value) for name, value in left.items()}
    unknown = query.keys() - set(route.query)
    assert not unknown, f"{route.name} has no query parameter {unknown}"
    return f"{path}?{urlencode(query, doseq=True)}" if query else path, body


def _spelt(value: Any) -> Any:
    """A value as a query has it: true and not True, each of a list by itself."""
    if isinstance(value, list):
        return [_spelt(one) for one in value]
    return value if isinstance(value, str) else json.dumps(value)
