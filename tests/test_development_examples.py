"""Examples of influence over training and of networks of equal loss, run small; their criteria on made-up runs."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = [
    pytest.mark.usefixtures("elsewhere"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


def run(monkeypatch: pytest.MonkeyPatch, example: str, *options: str) -> dict[str, Any]:
    """Run an example as from the command line; whatever it concludes, it writes its numbers."""
    monkeypatch.setattr(sys, "argv", [example, "--folder", "out", "--out", "found.json", *options])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    found = json.loads(Path("found.json").read_text())
    checks = found["checks"] if "checks" in found else [c for r in found.values() for c in r["checks"].values()]
    checks = list(checks.values()) if isinstance(checks, dict) else checks
    assert left.value.code == (0 if all(checks) else 1)
    return found


def test_influence_over_training_runs_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--num-steps", "60", "--readings", "4", "--num-draws", "4", "--num-chains", "2")
    found = run(monkeypatch, "stagewise_influence.py", *sizes)
    assert not all(found["0"]["checks"].values())  # sixty steps learn nothing
    assert "0 of 1 seeds show all of it" in capsys.readouterr().out
    assert Path("out/stagewise_influence.png").stat().st_size > 10_000


def test_its_criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves as the paper has them pass, and each change that should fail a criterion does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = runpy.run_path(str(EXAMPLES / "stagewise_influence.py"))
    steps = torch.arange(100, 3000, 50)
    centres = {0: 550.0, 1: 800.0, 2: 1200.0}

    def curve(centre: float) -> torch.Tensor:
        x = torch.log(steps / centre)
        return torch.exp(-(x**2) / 0.02) - 0.5 * torch.exp(-((x + 0.35) ** 2) / 0.02)

    def verdict(**changes: Any) -> list[bool]:
        shared = example["relation"]().flatten()
        places = {**centres, **changes.get("centres", {})}
        sign = changes.get("sign", 1.0)
        values = torch.stack([sign * curve(places[int(s)]) if int(s) < 3 else 0 * steps for s in shared], 1).double()
        curves = example["InfluenceCurves"](
            steps=steps,
            values=values + changes.get("offset", 0.0),
            stderr=torch.full_like(values, 0.01),
            between=torch.zeros_like(values),
            names=tuple(map(str, range(64))),
        )
        effect = changes.get("effect", 1.0) * values.reshape(-1, 8, 8).transpose(0, 1)
        losses = torch.ones(len(steps), 8).double()
        made = example["Run"](curves, [], losses, losses - effect, [450.0, 650.0, 950.0, 1600.0])
        checks, _ = example["judge"](made)
        return list(checks.values())

    assert verdict() == [True] * 6
    assert not verdict(sign=-1.0)[0]  # positive first
    assert not verdict(centres={1: 1300.0})[1]
    assert not verdict(centres={0: 900.0})[2]
    assert not verdict(centres={2: 1700.0})[3]
    assert not verdict(effect=-1.0)[4]
    assert not verdict(offset=0.2)[5]


def test_half_learning_times_are_those_of_theory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the network's own descent, against the closed form for modes of that size: within a tenth."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = runpy.run_path(str(EXAMPLES / "stagewise_influence.py"))
    _, half = example["descend"](0, torch.ones(1, 8), [3000])
    ratios = [a / b for a, b in zip(half[1:], half[:-1], strict=True)]
    sizes = torch.tensor([15.0, 7.0, 3.0, 1.0]).sqrt()
    assert all(later > 1 for later in ratios)
    # t_k = (τ/2s) ln(s/G − 1): one initial strength G explains all four times within a quarter
    strengths = [float(s) / (math.exp(2 * float(s) * t * 0.02 / 8) + 1) for s, t in zip(sizes, half, strict=True)]
    assert max(strengths) / min(strengths) < 20


@pytest.mark.slow
def test_influence_between_kinds_of_tokens_runs_small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ("--num-steps", "20", "--readings", "3", "--num-draws", "4", "--num-probe", "4", "--num-sequences", "128")
    assert "standard errors" in run(monkeypatch, "stagewise_tokens.py", *sizes)
    assert Path("out/stagewise_tokens.png").stat().st_size > 10_000


@pytest.mark.slow
def test_networks_of_equal_loss_run_small(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(monkeypatch, "same_loss.py", "--baseline", "1", "--num-chains", "2", "--num-draws", "4")
    assert found["0"]["checks"]["training losses within 0.001"]
    assert "# generalizing and memorizing" in capsys.readouterr().out
    assert Path("out/kinds.png").stat().st_size > 5_000
