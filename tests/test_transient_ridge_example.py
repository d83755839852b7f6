"""The example of transient ridge runs to its end; whether its numbers are right it says itself, in two minutes."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import lightning_slt as slt
from lightning_slt.analysis.trajectories import Rows, joint_trajectories
from lightning_slt.theory import dmmse_estimates, ridge_estimates

EXAMPLE = Path(__file__).parents[1] / "examples" / "transient_ridge.py"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*cannot be relied on:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .train_dataloader. does not have many workers"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("transient_ridge", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "transient_ridge", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_it_trains_draws_and_judges(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(example, "SAMPLERS", {how: (sampler, 1) for how, (sampler, _) in example.SAMPLERS.items()})
    small = replace(example.SCALES["small"], tasks=(2, 8, 64, 0), probe=64, sampled=64, chains=2, burnin=2)
    monkeypatch.setitem(example.SCALES, "small", small)
    short = ["--steps", "30", "--readings", "4", "--draws", "4", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["transient_ridge.py", *short])
    example.main()
    printed = capsys.readouterr().out
    (report,) = json.loads((tmp_path / "transient_ridge.json").read_text())
    assert list(report["runs"]) == ["M=2", "M=8", "M=64", "M=∞"]
    assert len(report["criteria"]) == 7
    assert f"{sum(not c['passed'] for c in report['criteria'])} criteria missed" in printed
    assert printed.count("MISSED") == sum(not c["passed"] for c in report["criteria"]) > 0  # nothing is learnt so soon
    assert "λ̂(M=8) − λ̂(M=2)" in printed
    assert "Lissajous" in printed
    picture = tmp_path / "seed0" / "transient_ridge.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "seed0" / "joint").glob("events*"))


def test_criteria_are_computed_and_can_miss(example: ModuleType) -> None:
    """A run that finds ridge (0) and leaves it for dMMSE (1), beside one that stays; and both backwards in time."""
    scale = replace(example.SCALES["small"], tasks=(8, 64))
    steps, y = torch.tensor([0, 100, 1000, 20_000]), torch.zeros(2, 2)
    paths = {
        "M=8": torch.tensor([[4.0, -4, 4, -4], [2.0, -2, 0, 0], [0.0, 0, 0.1, 0.1], [0.9, 0.9, 0.9, 0.9]]),
        "M=64": torch.tensor([[4.0, -4, 4, -4], [2.0, -2, 0, 0], [0.0, 0, 0.2, 0.2], [0.0, 0, 0, 0.1]]),
    }
    predictions = {"ridge": y, "dMMSE M=8": torch.ones(2, 2), "dMMSE M=64": torch.ones(2, 2)}
    llc = {"ε": {n: slt.Estimate(mean=1.0, stderr=0.1, per_chain=y[0], health=slt.Health(ok=True)) for n in paths}}

    def judge(order: list[int]) -> dict[str, list[bool]]:
        rows = {name: path[order] for name, path in paths.items()}
        joint = joint_trajectories({name: Rows(steps=steps, values=values) for name, values in rows.items()})
        ood = {name: values.square().mean(1) for name, values in rows.items()}
        last = {name: values[-1].view(2, 2) for name, values in rows.items()}
        found = example.judged(steps, ood, joint, llc, last, predictions, y, scale)
        if order[0] == 0:
            here = found.figures["runs"]["M=8"]
            assert (here["at step"], here["rise"]) == (1000, pytest.approx(0.81 / 0.005 - 1))
            assert (here["from ridge"], here["from dMMSE"]) == (pytest.approx(0.9), pytest.approx(0.1))
        verdicts: dict[str, list[bool]] = {}
        for criterion in found.criteria:
            verdicts.setdefault(criterion[0].partition(": ")[2].partition(" ")[0], []).append(
                example.came_out(criterion)
            )
        return verdicts

    there, back = judge([0, 1, 2, 3]), judge([3, 2, 1, 0])
    assert there["step"] == [True, True]
    assert there["distance"] == [True]
    assert there["rise"] == [True, True]
    assert back["step"] == [False, True]
    assert back["distance"] == [False]
    assert back["rise"] == [True, False]


def test_what_networks_are_given(example: ModuleType) -> None:
    """Statistics of the pairs before and none of the present one; predictors find x and y again."""
    scale = example.SCALES["small"]
    x, y = example.sequences(3, None, scale, torch.Generator().manual_seed(0))
    inputs = example.encoded(x, y, scale)
    k = 5
    before, mine = x[0, : k - 1], y[0, : k - 1]
    moment = before.T @ before / k
    assert torch.allclose(inputs[0, k - 1, :2], before.T @ mine / k, atol=1e-6)
    assert torch.allclose(inputs[0, k - 1, 2:5], torch.stack([moment[0, 0], moment[0, 1], moment[1, 1]]), atol=1e-6)
    tasks = example.task_list(scale, 0)[:8]
    for some, found in (
        (None, ridge_estimates(x, y, noise_variance=0.125)),
        (tasks, dmmse_estimates(x, y, tasks, noise_variance=0.125)),
    ):
        assert torch.equal(example.predictor(some, scale)((inputs, y)), (found * x).sum(-1))


def test_networks_side_by_side_are_independent(example: ModuleType) -> None:
    scale = example.SCALES["small"]
    torch.manual_seed(0)
    net = example.Perceptrons(3, scale)
    with torch.no_grad():
        net.gain.normal_()
    x, y = example.sequences(5, None, scale, torch.Generator().manual_seed(0))
    inputs = example.encoded(x, y, scale)
    together = net(inputs)
    apart = net(torch.stack([inputs, inputs.flip(0), inputs]))
    assert torch.allclose(net.one(1)(inputs)[0], together[1], atol=1e-6)
    assert torch.allclose(apart[1], together[1].flip(0), atol=1e-6)
    lists: list[Any] = [torch.tensor([[1.0, 0.0]]), None]
    inputs, y = next(iter(example.Endless(lists, scale, 0)))
    assert inputs.shape == (2, 32, 8, 8)
    assert y.shape == (2, 32, 8)
    residual = (y - inputs[..., -2])[0]  # of the only task, x₁: noise alone
    assert float(residual.var()) == pytest.approx(0.125, rel=4 * (2 / residual.numel()) ** 0.5)


def paper(example: ModuleType) -> Any:
    """The paper's kind of network at a size that can be tested."""
    return replace(
        example.SCALES["paper"], tasks=(2, 4, 0), transient=2, stays=4, dimensions=2, positions=3, width=8, steps=12,
        batch=4, readings=3, probe=8, sampled=16, chains=2, draws=3, burnin=1, minibatch=8,
    )  # fmt: skip


def test_the_papers_transformer_sees_the_past_only(example: ModuleType) -> None:
    torch.manual_seed(0)
    scale = paper(example)
    net = example.Transformer(scale)
    x, y = example.sequences(4, None, scale, torch.Generator().manual_seed(0))
    other = y.clone()
    other[:, 1] += 1.0
    one, two = (net(example.encoded(x, values, scale))[0] for values in (y, other))
    assert torch.equal(one[:, :2], two[:, :2])
    assert not torch.allclose(one[:, 2], two[:, 2])


@pytest.mark.slow
def test_the_papers_transformers_are_trained_one_after_another(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.task_set(0, paper(example), tmp_path)
    assert list(outcome.joint.points) == ["M=2", "M=4", "M=∞"]
    assert len(outcome.criteria) == 7
