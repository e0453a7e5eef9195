"""The whole bench in short: it runs, its counts agree, and its page names no machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bed import ROOT

SHORT = ("--seconds", "0.3", "--rounds", "1")


@pytest.mark.timeout(900)
def test_the_whole_bench_runs_and_its_counts_agree(tmp_path: Path) -> None:
    page = run(tmp_path)
    record = json.loads(page.with_suffix(".json").read_text())
    rows = {(row["name"], row["transport"]): row for row in record["rows"]}
    assert {("RecordUsage", each) for each in ("native", "grpcio", "JSON, Envoy")} < set(rows)
    for row in record["rows"]:
        assert row["rate"] > 0
        assert row["refused"] == 0
    assert rows["Reserve + Commit", "native"]["unit"] == "pairs/s"
    assert rows["WatchBalance", "native"]["unit"] == "changes/s"
    assert len(record["targets"]) >= 15
    for text in (page.read_text(), page.with_suffix(".json").read_text()):
        assert socket.gethostname() not in text
        assert str(ROOT) not in text
        assert str(Path.home()) not in text


def run(output: Path) -> Path:
    """Runs the bench in a process of its own; returns the page it wrote."""
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "benchmarks", *SHORT, "--output", str(output)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "gen")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    # It ends with an error if servers and rows, or accounts and sums, count differently.
    assert ended.returncode == 0, ended.stderr
    assert "30,000 durable events/s" in ended.stdout
    (found,) = output.glob("*cores.md")
    return found
