"""Supervisor: the children of a suite in the order they started, watched and stopped together."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

from suite import stale, state
from suite.processes import Child, Output

RUN_RECORD = "run.json"


class Tier(IntEnum):
    """What starts together, in order; it stops together, in the opposite order."""

    STORES = 0
    ROOMS = 1
    GATEWAY = 2


# Seconds to stop in before a child is killed; under 10 in all, PostgreSQL's urgent second included.
GRACE = {Tier.STORES: 1.5, Tier.ROOMS: 5.0, Tier.GATEWAY: 1.0}
POLL_SECONDS = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """
    Keeps run.json true, notices a child that ends and stops all in reverse order.

    A crashed child is never started again in silence: the suite ends with its reason.
    """

    def __init__(self, directory: Path) -> None:
        self._record = directory / RUN_RECORD
        self._directory = str(directory.resolve())
        self._children: list[tuple[Tier, Child, str]] = []
        self.facts: state.Record = {}
        """What else run.json says, e.g. "database_url"."""

    def end_leftovers(self) -> list[str]:
        """Ends what a killed supervisor left running; returns the names."""
        kept = state.read(self._record)
        # In a copied checkout the record is about the original's processes, which may well run.
        if kept.get("directory", self._directory) != self._directory:
            return []
        return stale.end(kept.get("processes", []))

    def adopt(self, tier: Tier, child: Child, address: str) -> None:
        """Watches a started child."""
        self._children.append((tier, child, address))
        self.save()

    def release(self, child: Child) -> None:
        """Watches a child no longer: its end is expected."""
        self._children = [entry for entry in self._children if entry[1] is not child]
        self.save()

    def save(self) -> None:
        """Writes run.json."""
        processes = [child.record() | {"address": address} for _, child, address in self._children]
        started = stale.started_at(os.getpid())
        record = {"supervisor": os.getpid(), "started": started, "processes": processes}
        state.write(self._record, record | {"directory": self._directory} | self.facts)

    def watch(self) -> None:
        """Returns never; SuiteError with the last words of the first child that ends."""
        while True:
            for _, child, _ in self._children:
                child.require_running()
            time.sleep(POLL_SECONDS)

    def forward(self, output: Output) -> None:
        """From now on the children's lines go to `output`."""
        for _, child, _ in self._children:
            child.output = output

    def stop(self) -> None:
        """Stops all, the last tier first."""
        with uninterrupted():
            for tier in reversed(Tier):
                self._stop_tier(tier)
            self._children.clear()
            self.facts.clear()
            self.save()

    def _stop_tier(self, tier: Tier) -> None:
        children = [child for other, child, _ in reversed(self._children) if other is tier]
        for child in children:
            child.ask_to_stop()
        deadline = time.monotonic() + GRACE[tier]
        for child in children:
            child.stop(deadline - time.monotonic())


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds signals off: stopping takes a bounded time, a second Ctrl-C gains nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Makes SIGTERM and a closed terminal end the suite as Ctrl-C does, by KeyboardInterrupt."""
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
