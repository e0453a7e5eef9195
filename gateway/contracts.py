"""Reads rooms, routes and message shapes out of the descriptor set."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

SERVICE = re.compile(r"finity\.(?P<room>[a-z]+)\.v\d+\.\w+")
FILE = "google.api.HttpBody"
VARIABLE = re.compile(r"{(?P<field>[^}=]+)(=(?P<segments>[^}]+))?}")
# One path segment. A colon ends it, for what follows is a custom verb such as ":setRole".
SEGMENT = "[^/:]+"


class ContractError(Exception):
    """A contract asks for something the gateway cannot route; the message names the method."""


@dataclass(frozen=True, slots=True)
class Route:
    """One HTTP binding of one method."""

    room: str
    method: MethodDescriptor
    verb: str
    template: str
    body: str
    """Name of the field the body fills; "*" for the whole request, "" for no body."""

    @property
    def is_file(self) -> bool:
        """Whether the answer is a file that comes in pieces, and no JSON."""
        return bool(self.method.server_streaming)

    @property
    def name(self) -> str:
        return f"{self.verb} {self.template}"

    @property
    def pattern(self) -> str:
        """The template as an RE2 expression for whole paths."""
        text = VARIABLE.sub(lambda found: found["segments"] or "*", self.template)
        parts = re.split(r"(\*\*|\*)", text)
        wild = {"*": SEGMENT, "**": ".+"}
        return "".join(wild.get(part) or re.escape(part) for part in parts)

    @property
    def bound(self) -> set[str]:
        """Fields the path fills."""
        return {found["field"] for found in VARIABLE.finditer(self.template)}

    @property
    def body_message(self) -> Descriptor | None:
        """The message a body must be; None for no body or one that is not an object."""
        if self.body in ("", "*"):
            return self.method.input_type if self.body else None
        field = self.method.input_type.fields_by_name[self.body]
        return None if field.is_repeated else field.message_type

    @property
    def query(self) -> list[str]:
        """Query parameters: each scalar that path and body leave over (google/api/http.proto)."""
        if self.body == "*":
            return []
        taken = self.bound | {self.body}
        return list(
            _scalars(self.method.input_type, "", "", taken, (self.method.input_type.full_name,))
        )


def strip(descriptors: bytes) -> bytes:
    """Returns the descriptor set without comments and positions: Envoy needs neither."""
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors)
    for file in files.file:
        file.ClearField("source_code_info")
    return files.SerializeToString(deterministic=True)


def routes(descriptors: bytes) -> list[Route]:
    """Returns every HTTP binding in the order of the contracts; methods without one have none."""
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors)
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return [
        route
        for file in files.file
        for service in pool.FindFileByName(file.name).services_by_name.values()
        for method in service.methods
        for route in _bindings(method, _rule(file, service.name, method.name))
    ]


def shapes(roots: list[Descriptor]) -> dict[str, dict[str, str | bool]]:
    """Returns, for the messages and all they hold: field name → message of the field, or True.

    Both spellings of a name are there, snake_case and lowerCamelCase. Well-known
    types are leaves, for their JSON is not that of their fields. "*" stands for
    every key of a map.
    """
    found: dict[str, dict[str, str | bool]] = {}
    waiting = list(roots)
    while waiting:
        message = waiting.pop()
        if message.full_name in found:
            continue
        found[message.full_name] = shape = {}
        for field in message.fields:
            inner = _object(field)
            shape.update(dict.fromkeys(_names(message, field), inner.full_name if inner else True))
            if inner:
                waiting.append(inner)
    return found


def _rule(
    file: descriptor_pb2.FileDescriptorProto, service: str, method: str
) -> http_pb2.HttpRule | None:
    # Read from the parsed file: a pool of one's own hands options out without our extensions.
    for candidate in file.service:
        for proto in candidate.method if candidate.name == service else ():
            if proto.name == method and proto.options.HasExtension(annotations_pb2.http):
                return proto.options.Extensions[annotations_pb2.http]
    return None


def _bindings(method: MethodDescriptor, rule: http_pb2.HttpRule | None) -> Iterator[Route]:
    if rule is None:
        return
    owner = SERVICE.fullmatch(method.containing_service.full_name)
    if not owner:
        raise ContractError(f"{method.full_name}: only packages finity.<room>.v1 have HTTP routes")
    for binding in (rule, *rule.additional_bindings):
        if method.client_streaming or (method.server_streaming and not _is_file(method, binding)):
            raise ContractError(f"{method.full_name}: only a stream of HttpBody has a route")
        pattern = binding.WhichOneof("pattern")
        verb = binding.custom.kind if pattern == "custom" else str(pattern).upper()
        template = binding.custom.path if pattern == "custom" else getattr(binding, str(pattern))
        yield Route(owner["room"], method, verb, template, binding.body)


def _is_file(method: MethodDescriptor, binding: http_pb2.HttpRule) -> bool:
    """Tells whether answers are bytes with a type of their own, to be passed on as they are."""
    fields = method.output_type.fields_by_name
    body = fields[binding.response_body].message_type if binding.response_body else None
    return (body or method.output_type).full_name == FILE


def _object(field: FieldDescriptor) -> Descriptor | None:
    message: Any = field.message_type
    known = message is not None and message.full_name.startswith("google.protobuf.")
    return None if known else message


def _names(message: Descriptor, field: FieldDescriptor) -> tuple[str, ...]:
    if message.GetOptions().map_entry:
        return ("*",) if field.name == "value" else ()
    return field.name, field.json_name


def _scalars(
    message: Descriptor, path: str, spelt: str, taken: set[str], above: tuple[str, ...]
) -> Iterator[str]:
    for field in message.fields:
        inner = _object(field)
        if path + field.name in taken or (inner and field.is_repeated):
            continue
        if inner and inner.full_name in above:
            continue
        for name in dict.fromkeys((field.name, field.json_name)):
            if inner is None:
                yield spelt + name
                continue
            within = (f"{path}{field.name}.", f"{spelt}{name}.")
            yield from _scalars(inner, *within, taken, (*above, inner.full_name))
