"""The numbers of docs/samplers.md are those of the committed results, and its pictures can be made."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.deep_linear.classes import CLASSES
from benchmarks.deep_linear.networks import plan_network
from benchmarks.deep_linear.summary import Row, best, make_rows, state, verdict

ROOT = Path(__file__).parents[1]
IMAGES, RESULTS = ROOT / "docs" / "images", ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "samplers.md").read_text()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """examples/failure_modes.py."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("failure_modes")


def stored(name: str) -> Any:
    return json.loads((IMAGES / f"{name}.json").read_text())


def contest(network_class: str) -> dict[str, list[Row]]:
    """What each sampler did in the benchmark, by step size."""
    (file,) = RESULTS.glob(f"deep_linear-{network_class}-deepest-*.json")
    cells = json.loads(file.read_text())["cells"]
    keys = {(cell["seed"], cell["index"]) for cell in cells}
    plans = {k: plan_network(CLASSES[network_class.replace("k", "K")], "deepest", seed=k[0], index=k[1]) for k in keys}
    return make_rows(cells, plans)


def silent(rows: list[Row]) -> str:
    """Values more than 15 % too high that no check failed or warned of, of all such values."""
    found = Counter(
        state(cell) for row in rows for cell, error in zip(row.cells, row.errors, strict=True)
        if verdict(error) == "too high"
    )  # fmt: skip
    return f"{found['ok']} of {sum(found.values())}"


def acceptances(rows: list[Row]) -> Counter[tuple[str, bool]]:
    """Values by what the truth says of them, and whether SGLD's acceptance was below 0.8."""
    return Counter(
        (verdict(error), cell["values"]["acceptance"] < 0.8)
        for row in rows for cell, error in zip(row.cells, row.errors, strict=True)
        if cell["values"].get("acceptance") is not None
    )  # fmt: skip


def test_the_contest_is_that_of_the_result_files() -> None:
    small, large = contest("small"), contest("1k")
    for name, rows in small.items():
        first, second = best(rows), best(large[name])
        line = (
            f"| {name} | {first.error.median:.3g} | {first.order:.2f} | {second.error.median:.3g} "
            f"| {silent(rows)} | {silent(large[name])} |"
        )
        assert line in PAGE, line


def test_the_acceptance_of_sgld_is_that_of_the_result_files() -> None:
    small, large = (acceptances(contest(c)["SGLD"]) for c in ("small", "1k"))
    high = f"{small['too high', True]} of {small['too high', True] + small['too high', False]}"
    right = f"{small['right', True]} of {small['right', True] + small['right', False]}"
    assert f"below 0.8 in {high} values that were too high, and in {right} that were right" in PAGE, (high, right)
    assert (large["too high", False], large["right", True]) == (0, 0)


def test_the_table_of_failures_is_that_of_the_picture(script: ModuleType) -> None:
    for line in script.table(stored("failure_modes")):
        assert line in PAGE, line


def test_the_searches_are_those_of_the_picture() -> None:
    for search in ("default", "more draws", "absolute"):
        text = stored("calibration_digits")[search]["text"]
        assert text in PAGE, text


def test_a_picture_is_drawn(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["failure_modes.py", "--folder", str(tmp_path), "--only", "Step too short", "Divergence"]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    assert (tmp_path / "failure_modes.png").read_bytes().startswith(b"\x89PNG")
    diverged, short = capsys.readouterr().out.splitlines()
    assert "rhat" in short
    assert "finite 2" in diverged
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_the_same_checks_fire_today(script: ModuleType) -> None:
    kept = {result["title"]: result for result in stored("failure_modes")}
    now = [script.row(case, case.run()) for case in script.cases()]
    assert {r["title"]: r["failed"] for r in now} == {title: r["failed"] for title, r in kept.items()}
