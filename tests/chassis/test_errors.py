"""chassis.errors: refusals as values."""

import grpc
import pytest

from chassis import errors
from chassis.errors import Code, FieldViolation, NotFound, Refusal


class ThingMissing(NotFound):
    """There is no
    such thing here."""

    reason = "THING_MISSING"


def test_a_refusal_s_docstring_is_its_message() -> None:
    """Without a message of its own a refusal says its docstring, on one line."""
    refusal = ThingMissing()
    assert refusal.message == str(refusal) == "There is no such thing here."
    assert ThingMissing("no such cup").message == "no such cup"


def test_a_refusal_carries_what_it_was_given() -> None:
    """Metadata, delay and violations are kept; metadata is a copy."""
    metadata = {"a": "1"}
    violation = FieldViolation("name", "string.max_len", "too long")
    refusal = ThingMissing(metadata=metadata, retry_after=1.5, violations=(violation,))
    metadata["a"] = "2"
    assert refusal.metadata == {"a": "1"}
    assert (refusal.retry_after, refusal.violations) == (1.5, (violation,))


def test_every_code_is_grpc_s() -> None:
    """Names and numbers of the codes are those of gRPC, OK left out."""
    theirs = {code.name: code.value[0] for code in grpc.StatusCode if code.value[0]}
    assert {code.name: code.value for code in Code} == theirs


@pytest.mark.parametrize(
    "kind", [k for k in Refusal.__subclasses__() if k.__module__ == errors.__name__]
)
def test_each_kind_is_one_code(kind: type[Refusal]) -> None:
    """A kind of refusal is named after its code and explains itself."""
    spelled = "".join(part.capitalize() for part in Code(kind.code).name.split("_"))
    assert kind.__name__ == spelled
    assert kind.__doc__
