"""chassis.tallies: what is scraped of the calls answered."""

import grpc
from prometheus_client import CollectorRegistry, generate_latest

from chassis.tallies import Tallies

LABELS = 'grpc_method="Open",grpc_service="a.B"'


def scraped(tallies: Tallies) -> list[str]:
    registry = CollectorRegistry()
    registry.register(tallies)
    return generate_latest(registry).decode().splitlines()


def test_calls_are_scraped_by_code_and_by_time() -> None:
    """Prometheus reads how many ended with each code, and how many within each bound."""
    tallies = Tallies()
    tally = tallies.of("a.B", "Open")
    for took in (0.0005, 0.001, 0.002, 99.0):
        tally.add(grpc.StatusCode.OK.value[0], took)
    tally.add(grpc.StatusCode.NOT_FOUND.value[0], 0.3)
    lines = scraped(tallies)
    handled = "grpc_server_handled_total{"
    assert f'{handled}grpc_code="OK",{LABELS}}} 4.0' in lines
    assert f'{handled}grpc_code="NOT_FOUND",{LABELS}}} 1.0' in lines
    assert f'{handled}grpc_code="INTERNAL",{LABELS}}} 0.0' in lines
    seconds = "grpc_server_handling_seconds_"
    bounds = {"0.001": 2, "0.0025": 3, "0.25": 3, "0.5": 4, "10.0": 4, "+Inf": 5}
    for bound, count in bounds.items():
        assert f'{seconds}bucket{{{LABELS},le="{bound}"}} {count}.0' in lines
    assert f"{seconds}count{{{LABELS}}} 5.0" in lines
    assert f"{seconds}sum{{{LABELS}}} 99.3035" in lines


def test_what_nobody_called_is_not_scraped() -> None:
    """A method appears with its first call, and it is the same tally each time."""
    tallies = Tallies()
    assert tallies.of("a.B", "Open") is tallies.of("a.B", "Open")
    assert not [line for line in scraped(tallies) if not line.startswith("#")]
