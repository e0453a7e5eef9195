"""Contracts of the tests' own, built from descriptors: what belongs to no room needs no room."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from buf.validate import validate_pb2
from finity.options.v1 import options_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

_IMPORTS = ("buf/validate/validate.proto", "finity/options/v1/options.proto")
PUBLIC = [options_pb2.PUBLIC]
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Text:
    """A string field of the request."""

    name: str
    max_len: int = 0
    rule: str = ""
    """A CEL expression."""
    subject: bool = False
    sensitive: bool = False


@dataclass(frozen=True, slots=True)
class Rpc:
    """A method that takes the one request and gives the one answer."""

    name: str
    allow: Sequence[Any] = ()
    """finity.options.v1.Caller values."""
    stream: bool = False
    """Whether it gives a stream."""
    takes_stream: bool = False


def build(fields: Sequence[Text], rpcs: Sequence[Rpc]) -> ServiceDescriptor:
    """Returns a ProbeService in a package of its own."""
    package = f"finity.probe{next(_numbers)}.v1"
    file = FileDescriptorProto(
        name=f"{package}.proto",
        package=package,
        syntax="proto3",
        dependency=_IMPORTS,
    )
    _add_request(file, "Ask", fields)
    # The same on the wire; a public method can have no subject.
    _add_request(file, "PublicAsk", [replace(field, subject=False) for field in fields])
    file.message_type.add(name="Answer").field.add(name="text", number=1, type=9, label=1)
    service = file.service.add(name="ProbeService")
    for rpc in rpcs:
        method = service.method.add(
            name=rpc.name,
            input_type=f".{package}.{'PublicAsk' if list(rpc.allow) == PUBLIC else 'Ask'}",
            output_type=f".{package}.Answer",
        )
        method.server_streaming = rpc.stream
        method.client_streaming = rpc.takes_stream
        if rpc.allow:
            method.options.Extensions[options_pb2.access].allow.extend(rpc.allow)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return pool.FindServiceByName(f"{package}.ProbeService")


def _add_request(file: FileDescriptorProto, name: str, fields: Sequence[Text]) -> None:
    request = file.message_type.add(name=name)
    for number, field in enumerate(fields, 1):
        _add_field(request.field, number, field)


def _add_field(fields: Any, number: int, text: Text) -> None:
    field = fields.add(
        name=text.name,
        number=number,
        type=FieldDescriptorProto.TYPE_STRING,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
    )
    rules = field.options.Extensions[validate_pb2.field]
    if text.max_len:
        rules.string.max_len = text.max_len
    if text.rule:
        rules.cel.add(id="probe.rule", expression=text.rule)
    if text.subject:
        field.options.Extensions[options_pb2.subject] = True
    if text.sensitive:
        field.options.Extensions[options_pb2.sensitive] = True
