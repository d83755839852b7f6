"""The benchmark of many readings: what it measures of a short run, and what its committed result says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import soak

RESULTS = Path(soak.__file__).parent / "results"


def test_slopes_are_those_of_a_line() -> None:
    """y = 3 + 2x, x in thousands, with residuals of ±e in turn: error e·√(n/(n−2))/√Σ(x−x̄)²."""
    rows = [{"readings": 1000.0 * k, "ms": 3 + 2 * k + (0.1 if k % 4 in (1, 2) else -0.1)} for k in range(10)]
    found = soak.slope(rows, "ms")
    assert found["per_thousand"] == pytest.approx(2.0, abs=1e-10)
    assert found["stderr"] == pytest.approx(0.1 * (8 / 6) ** 0.5 / 42**0.5, abs=1e-10)


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_a_short_run(tmp_path: Path) -> None:
    found = soak.soak(tmp_path, readings=40, blocks=4, stages=True)
    assert [row["readings"] for row in found["blocks"]] == [10, 20, 30, 40]
    objects = [row["objects"] for row in found["blocks"]]
    assert objects[3] - objects[2] <= 20  # one a reading: the curve that stages are found in
    assert "40 readings in" in soak.report(found)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("soak-*.json")), ids=lambda f: f.stem)
def test_committed_results_are_whole_runs_that_are_flat(file: Path) -> None:
    """Over a thousand readings time, memory and objects grow by less than a fiftieth."""
    found = json.loads(file.read_text())
    assert found["readings"] == 10_000
    assert len(found["blocks"]) == 50
    for what in ("ms", "rss_mb", "objects"):
        slope = soak.slope(found["blocks"], what)
        assert slope == pytest.approx(found["slopes"][what])
        assert slope["per_thousand"] < 0.02 * slope["median"]
    assert found["machine"]["hardware"]
