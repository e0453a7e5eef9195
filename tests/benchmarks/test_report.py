"""What the report judges."""

from datetime import date

import pytest

from benchmarks.measure import Measured
from benchmarks.report import Report
from benchmarks.rows import PEER, RECORD, Row
from benchmarks.work import Sample


class Nothing:
    """The work of a row that was measured elsewhere."""

    def run(self, seconds: float) -> Sample:
        return Sample(seconds, 0, 0, 0.0, 0.0)


def row(name: str, transport: str, in_flight: int, rate: float, p99: float) -> Measured:
    measured = Row(name, transport, Nothing(), in_flight, None)
    return Measured(measured, (rate,), (Sample(1.0, int(rate), 0, p99 / 2, p99),))


def report(*rows: Measured) -> Report:
    return Report(date(2026, 1, 1), 1.0, 1, {}, rows)


@pytest.mark.parametrize(
    ("p99s", "expected"),
    [
        ((0.01, 0.02, 0.04), 256),
        ((0.01, 0.05, 0.051), 128),
        ((0.09, 0.08, 0.10), 128),
    ],
    ids=["all quick", "the fullest too slow", "none quick"],
)
def test_record_is_judged_where_its_p99_holds(
    p99s: tuple[float, float, float], expected: int
) -> None:
    """The fastest of the houses within the p99, the quickest where none is; never another wire."""
    rows = [
        row(RECORD, "native", house, rate, p99)
        for house, rate, p99 in zip((64, 128, 256), (5000, 6000, 7000), p99s, strict=True)
    ]
    found = report(row(RECORD, "grpcio", 512, 9000, 0.01), *rows).record()
    assert found is not None
    assert found.row.in_flight == expected


def test_the_peer_is_judged_at_its_fastest() -> None:
    """A row of ours whose p99 does not hold cannot meet the target by its rate."""
    texts = [
        str(target)
        for target in report(
            row(RECORD, "native", 64, 1000, 0.01),
            row(RECORD, "native", 256, 4000, 0.2),
            row(PEER, "JSON", 64, 50, 0.01),
            row(PEER, "JSON", 256, 100, 2.0),
        ).targets()
    ]
    assert texts[0].startswith("NOT MET")
    assert "10.0 times with 64 in flight" in texts[0]
