"""A valid request for every method; a request type without a factory fails the test that asks."""

from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from chassis.contract import Method
from tests.contracts.requests.given import Given

Factory = Callable[[Given], Message | Awaitable[Message]]
"""Makes a request; it awaits what has to be there first, e.g. a mail to have been asked for."""
FACTORIES: dict[Any, Factory] = {}
# A module for each contract, found by its FACTORIES.
for _path in sorted(Path(__file__).parent.glob("[!_]*.py")):
    _module = import_module(f"tests.contracts.requests.{_path.stem}")
    FACTORIES |= getattr(_module, "FACTORIES", {})


async def request_for(method: Method, given: Given) -> Message:
    """Returns a request of the method's type that its service accepts."""
    factory = FACTORIES.get(method.request)
    if factory is None:
        pytest.fail(f"{method.request.__name__} has no factory in tests/contracts/requests/")
    made = factory(given)
    return await made if isinstance(made, Awaitable) else made
