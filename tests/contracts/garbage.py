"""Bytes nobody should send: noise, broken encodings, and valid messages gone wrong."""

import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_STRINGS = (
    "",
    "\0",
    "a\0b@example.com",
    "me",
    "ME",
    "é" * 300,
    "x" * 5000,
    "0192e4a0-0000-7000-8000-00000000000G",
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-7fff-bfff-ffffffffffff",
    "'; DROP TABLE users; --",
    "{}",
    "\ud7ff\U0010ffff",
    "../../etc/passwd",
    "eyJhbGciOiJub25lIn0.e30.",
    "W" * 2900 + ".e30.e30",
    "[" * 400,
)
_NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 99)
_LARGE = (*_NUMBERS, 2**63 - 1, -(2**63), 10**15)
_FLOATS = (0.0, -1.0, float("nan"), float("inf"))
_WIDE = {
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT64,
}
_UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}


def garbage(dice: random.Random, valid: Callable[[], Message]) -> Iterator[bytes]:
    """Yields without end: noise, and messages of the valid one's type gone wrong in some way."""
    while True:
        yield dice.randbytes(dice.randrange(120))
        yield _mutated(dice, valid().SerializeToString())
        message = valid()
        for _ in range(dice.randint(1, 3)):
            _spoil(dice, message)
        yield message.SerializeToString()


def _mutated(dice: random.Random, raw: bytes) -> bytes:
    data = bytearray(raw or b"\x0a\x01x")
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0:
                data[at:at] = dice.randbytes(dice.randint(1, 8))
            case 1:
                del data[at : at + dice.randint(1, 8)]
            case 2 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case 3:
                data += data[:at]
            case _:
                del data[at:]
    return bytes(data)


def _spoil(dice: random.Random, message: Any) -> None:
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = dice.choice(fields)
    if field.message_type is not None:
        _spoil_message(dice, message, field)
    elif field.is_repeated:
        getattr(message, field.name).append(_value(dice, field))
    elif dice.random() < 0.1:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(dice, field))


def _spoil_message(dice: random.Random, message: Any, field: FieldDescriptor) -> None:
    inner = getattr(message, field.name)
    if not field.is_repeated:
        inner.SetInParent()
        _spoil(dice, inner)
    elif inner and dice.random() < 0.5:
        _spoil(dice, dice.choice(inner))
    elif inner and dice.random() < 0.5:
        inner.extend(list(inner) * dice.randint(1, 4))
    else:
        _spoil(dice, inner.add())


def _value(dice: random.Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = dice.choice(_STRINGS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return dice.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return dice.choice(_FLOATS)
    number = dice.choice(_LARGE if kind in _WIDE else _NUMBERS)
    return abs(number) % 2**31 if kind in _UNSIGNED else number
