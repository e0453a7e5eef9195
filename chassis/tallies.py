"""
Calls answered, by method and code, as Prometheus scrapes them.

The library's own counters take a lock and a look-up for each number: three times what these
cost a call. Only the thread that answers calls writes them.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

import grpc
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Of the histogram, in seconds; a call belongs to the first bound that it does not exceed."""
_LABELS = ("grpc_service", "grpc_method")
_NAMES = {int(code.value[0]): code.name for code in grpc.StatusCode}


class Tally:
    """The calls of one method."""

    __slots__ = ("codes", "seconds", "spread")

    def __init__(self) -> None:
        self.codes = [0] * len(_NAMES)
        """Calls by the number of their code."""
        self.spread = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, code: int, seconds: float) -> None:
        """Counts a call that was answered."""
        self.codes[code] += 1
        self.spread[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds


class Tallies(Collector):
    """The tallies of a process."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = {}

    def of(self, service: str, method: str) -> Tally:
        """Returns the tally of a method; one that nobody calls is not scraped."""
        return self._tallies.setdefault((service, method), Tally())

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        """Yields what is scraped."""
        handled = CounterMetricFamily(
            "grpc_server_handled", "Calls answered.", labels=(*_LABELS, "grpc_code")
        )
        seconds = HistogramMetricFamily(
            "grpc_server_handling_seconds", "Time to answer.", labels=_LABELS
        )
        bounds = [*map(str, BOUNDS), "+Inf"]
        for labels, tally in self._tallies.copy().items():
            if not any(tally.codes):
                continue
            for code, name in _NAMES.items():
                handled.add_metric((*labels, name), tally.codes[code])
            buckets = list(zip(bounds, accumulate(tally.spread), strict=True))
            seconds.add_metric(labels, buckets, tally.seconds)
        yield handled
        yield seconds


TALLIES = Tallies()
REGISTRY.register(TALLIES)
