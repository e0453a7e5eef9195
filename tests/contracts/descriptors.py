"""The contracts as protoc wrote them, comments included; what the tests enumerate."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor

from chassis.contract import Method, methods_of

ROOT = Path(__file__).resolve().parents[2]


def _contract(room: str, module: str) -> FileDescriptor:
    descriptor: FileDescriptor = import_module(f"finity.{room}.v1.{module}").DESCRIPTOR
    return descriptor


ROOMS = sorted(
    path.name
    for path in (ROOT / "services").iterdir()
    if (path / "rpc.py").exists() or (path / "rpc").is_dir()
)
# Every service of a room, whatever file it is in.
SERVICES = {
    room: [
        service
        for path in sorted((ROOT / "gen" / "finity" / room / "v1").glob("*_pb2.py"))
        for service in _contract(room, path.stem).services_by_name.values()
    ]
    for room in ROOMS
}


def methods(room: str) -> list[Method]:
    """Returns every method of a room, in the contract's order."""
    return list(methods_of(SERVICES[room]).values())


@cache
def files() -> Mapping[str, descriptor_pb2.FileDescriptorProto]:
    """Returns our proto files by name, source info included."""
    raw = (ROOT / "gen" / "finity.binpb").read_bytes()
    every = descriptor_pb2.FileDescriptorSet.FromString(raw).file
    return {file.name: file for file in every if file.name.startswith("finity/")}


def comments(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """Returns the comment before each element, by its path in the descriptor."""
    return {
        tuple(location.path): " ".join(location.leading_comments.split())
        for location in file.source_code_info.location
    }


def elements(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yields path and name of everything in a file that must be commented."""
    for number, service in enumerate(file.service):
        yield (6, number), service.name
        for index, method in enumerate(service.method):
            yield (6, number, 2, index), f"{service.name}.{method.name}"
    for number, enum in enumerate(file.enum_type):
        yield from _enum((5, number), enum)
    for number, message in enumerate(file.message_type):
        yield from _message((4, number), message)
    for number, extension in enumerate(file.extension):
        yield (7, number), extension.name


def _message(
    path: tuple[int, ...], message: descriptor_pb2.DescriptorProto
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, message.name
    for number, field in enumerate(message.field):
        yield (*path, 2, number), f"{message.name}.{field.name}"
    for number, enum in enumerate(message.enum_type):
        yield from _enum((*path, 4, number), enum)
    for number, inner in enumerate(message.nested_type):
        if not inner.options.map_entry:
            yield from _message((*path, 3, number), inner)


def _enum(
    path: tuple[int, ...], enum: descriptor_pb2.EnumDescriptorProto
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, enum.name
    for number, value in enumerate(enum.value):
        yield (*path, 2, number), f"{enum.name}.{value.name}"
