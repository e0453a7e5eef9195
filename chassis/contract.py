"""
What the contract says about a method, read once from its descriptor.

Access rules, the subject field and protovalidate's field rules live in the
protos; a service whose contract is incomplete refuses to start.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import protovalidate
from finity.options.v1 import options_pb2
from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from chassis.errors import FieldViolation
from chassis.refusals import InvalidRequest, MalformedMessage

_validator = protovalidate.Validator()


class ContractError(Exception):
    """A contract is incomplete; the message names the method or field and what it lacks."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC as its contract describes it."""

    path: str
    """ "/finity.auth.v1.AuthService/GetUser"."""
    service: str
    name: str
    request: type[Message]
    allow: frozenset[int]
    """finity.options.v1.Caller values admitted."""
    in_person: bool
    """Whether an administrator who acts as a user is refused."""
    subject: str
    """Name of the request field that names whose data it is about; "" if none does."""
    streams: bool = False
    """Whether it answers with a stream of messages."""
    takes_stream: bool = False
    """Whether it takes a stream of messages; each is looked at as a request is."""

    def parse(self, raw: bytes) -> Message:
        """Decodes a request; MalformedMessage if the bytes are not one."""
        try:
            return self.request.FromString(raw)
        except (DecodeError, UnicodeDecodeError) as error:
            raise MalformedMessage from error


def methods_of(services: Iterable[ServiceDescriptor]) -> dict[str, Method]:
    """Returns every method by path; ContractError for one without rules that hold."""
    methods = {}
    for service in services:
        for descriptor in service.methods:
            method = _method(service, descriptor)
            methods[method.path] = method
    return methods


def validate(message: Message) -> None:
    """Checks a message against its contract's rules; InvalidRequest names every broken one."""
    found = _validator.collect_violations(message)
    if found:
        raise InvalidRequest(violations=tuple(map(_violation, found)))


def sensitive_names(services: Iterable[ServiceDescriptor]) -> frozenset[str]:
    """Returns the names of all fields marked secret in what these services take and give."""
    seen: dict[str, Descriptor] = {}
    for service in services:
        for method in service.methods:
            _collect(method.input_type, seen)
            _collect(method.output_type, seen)
    return frozenset(
        field.name
        for message in seen.values()
        for field in message.fields
        if field.GetOptions().Extensions[options_pb2.sensitive]
    )


def _collect(message: Descriptor, seen: dict[str, Descriptor]) -> None:
    if message.full_name not in seen:
        seen[message.full_name] = message
        for field in message.fields:
            if field.message_type is not None:
                _collect(field.message_type, seen)


def _method(service: ServiceDescriptor, descriptor: MethodDescriptor) -> Method:
    path = f"/{service.full_name}/{descriptor.name}"
    access = descriptor.GetOptions().Extensions[options_pb2.access]
    allow = frozenset(access.allow)
    if not allow or options_pb2.CALLER_UNSPECIFIED in allow:
        raise ContractError(
            f"{path} has no access rule: add (finity.options.v1.access) to its proto."
        )
    _compile_rules(descriptor.input_type, set())
    return Method(
        path=path,
        service=service.full_name,
        name=descriptor.name,
        request=GetMessageClass(descriptor.input_type),
        allow=allow,
        in_person=access.in_person,
        subject=_subject(path, descriptor.input_type, allow),
        streams=descriptor.server_streaming,
        takes_stream=descriptor.client_streaming,
    )


def _subject(path: str, request: Descriptor, allow: frozenset[int]) -> str:
    fields = [f for f in request.fields if f.GetOptions().Extensions[options_pb2.subject]]
    names = [field.name for field in fields]
    if len(names) > 1:
        raise ContractError(f"{path} has more than one subject field: {', '.join(names)}.")
    if any(field.is_repeated or field.type != FieldDescriptor.TYPE_STRING for field in fields):
        raise ContractError(f"{path}: its subject {names[0]} must be one string.")
    if options_pb2.PUBLIC in allow and (len(allow) > 1 or names):
        raise ContractError(f"{path} is PUBLIC: it can have no other caller and no subject.")
    owner = request.fields_by_name.get("user_id")
    if options_pb2.USER in allow and owner is not None and not names:
        raise ContractError(f"{path} admits users but its user_id is not marked as the subject.")
    return names[0] if names else ""


def _compile_rules(descriptor: Descriptor, seen: set[str]) -> None:
    if descriptor.full_name in seen or descriptor.full_name.startswith("google."):
        return
    seen.add(descriptor.full_name)
    try:
        _validator.collect_violations(GetMessageClass(descriptor)())
    except (protovalidate.CompilationError, protovalidate.EvaluationError) as error:
        raise ContractError(
            f"A rule of {descriptor.full_name} does not compile: {error}"
        ) from error
    for field in descriptor.fields:
        if field.message_type is not None:
            _compile_rules(field.message_type, seen)


def _violation(violation: protovalidate.Violation) -> FieldViolation:
    parts: list[str] = []
    for element in violation.proto.field.elements if violation.proto.field else ():
        index = element.subscript.value if element.subscript else None
        parts.append(element.field_name if index is None else f"{element.field_name}[{index}]")
    return FieldViolation(".".join(parts), violation.proto.rule_id, violation.proto.message)
