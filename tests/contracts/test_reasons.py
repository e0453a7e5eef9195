"""Every ErrorReason of a contract is one refusal of the code, and the other way round."""

import importlib
import inspect
import re

import pytest

from chassis.errors import Code, Refusal
from tests.contracts.descriptors import ROOMS, ROOT, comments, files

SHARED = "errors"
PREFIX = "ERROR_REASON_"


def refusals_of(room: str) -> list[type[Refusal]]:
    """Returns the refusals of a room, or the shared ones."""
    name = "chassis.refusals" if room == SHARED else f"services.{room}.errors"
    return [
        kind
        for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass)
        if issubclass(kind, Refusal) and kind.__module__ == name
    ]


def reasons_of(room: str) -> dict[str, str]:
    """Returns each reason of a room's proto with its comment."""
    file = files()[f"finity/{room}/v1/{room}.proto"]
    said = comments(file)
    ((number, enum),) = [
        (number, enum) for number, enum in enumerate(file.enum_type) if enum.name == "ErrorReason"
    ]
    return {
        value.name.removeprefix(PREFIX): said.get((5, number, 2, index), "")
        for index, value in enumerate(enum.value)
        if value.number
    }


@pytest.mark.parametrize("room", [SHARED, *ROOMS])
def test_reasons_and_refusals_are_the_same(room: str) -> None:
    """One refusal class for each reason and one reason for each class, none twice."""
    reasons = [kind.reason for kind in refusals_of(room)]
    assert sorted(reasons) == sorted(reasons_of(room))


@pytest.mark.parametrize("room", [SHARED, *ROOMS])
def test_a_reason_s_code_is_the_one_its_comment_says(room: str) -> None:
    """Each reason's comment starts with the code its refusal carries."""
    said = {reason: comment.partition(":")[0] for reason, comment in reasons_of(room).items()}
    assert said == {kind.reason: Code(kind.code).name for kind in refusals_of(room)}


@pytest.mark.parametrize("room", [SHARED, *ROOMS])
def test_a_room_s_refusals_have_its_domain(room: str) -> None:
    """Shared refusals are of the domain "finity"; a room's leave theirs to the room."""
    domains = {kind.domain for kind in refusals_of(room)}
    assert domains == {"finity" if room == SHARED else None}


@pytest.mark.parametrize("room", [SHARED, *ROOMS])
def test_every_reason_has_a_test(room: str) -> None:
    """Each reason is named in quotes, or by its class in pytest.raises, by a test."""
    tests = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    untested = [
        kind.reason
        for kind in refusals_of(room)
        if f'"{kind.reason}"' not in tests and not re.search(rf"raises\({kind.__name__}\b", tests)
    ]
    assert untested == []
