"""What the chassis' tests run on."""

import asyncio
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Returns the loop that services run on: what races there must race here."""
    return {"uvloop": uvloop.new_event_loop}
