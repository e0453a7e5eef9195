"""chassis.refusals: what any service may answer; tests/contracts compares them with their proto."""

import inspect

from chassis import refusals
from chassis.errors import Code, Refusal

ALL = [
    kind
    for _, kind in inspect.getmembers(refusals, inspect.isclass)
    if issubclass(kind, Refusal) and kind.__module__ == refusals.__name__
]


def test_each_refusal_has_a_reason_of_its_own() -> None:
    """No two shared refusals have the same reason, and a reason is the class name spelled out."""
    assert len({kind.reason for kind in ALL}) == len(ALL)
    for kind in ALL:
        assert kind.reason.replace("_", "").lower() == kind.__name__.lower()


def test_shared_refusals_belong_to_no_room() -> None:
    """The domain of a shared refusal is "finity", its code is a known one."""
    for kind in ALL:
        assert kind.domain == "finity"
        assert Code(kind.code)


def test_a_refusal_tells_a_developer_what_to_know() -> None:
    """Each message is one or two sentences that end in a full stop and hold no class name."""
    for kind in ALL:
        message = kind().message
        assert message.endswith((".", "`."))
        assert kind.__name__ not in message
