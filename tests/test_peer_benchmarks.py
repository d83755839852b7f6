"""The benchmarks of covariances, retraining and joint readings: their arithmetic, and each run small without peers."""

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.covariances.__main__ import main as covariances_main
from benchmarks.covariances.agreement import agreement
from benchmarks.covariances.cases import CASES, per_sample_loss, read_question
from benchmarks.covariances.problem import digits, make_question
from benchmarks.joint.__main__ import CASE, joint_ratios
from benchmarks.joint.__main__ import main as joint_main
from benchmarks.retraining.__main__ import CEILING, best, render, score
from benchmarks.retraining.__main__ import main as retraining_main
from benchmarks.turns import Contender, Run, ratios, run, take_turns
from lightning_slt.analysis.retraining import Retrained, random_subsets


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def timed(processor, answer=None):
    return Run(answer or {}, wall=2 * processor, processor=processor, peak_bytes=2**20)


def test_a_question_is_read_as_it_was_written():
    case = CASES["influence"]
    problem = read_question(make_question(case, seed=3))
    assert problem.case == case
    assert problem.seed == 3
    assert [len(part[1]) for part in (problem.train, problem.query)] == [200, 100]
    loss = per_sample_loss(problem.net, problem.train).mean().item()
    assert loss == pytest.approx(problem.anchor_loss, abs=1e-6)
    assert problem.anchor_loss < 0.2  # trained
    again = read_question(make_question(case, seed=4))
    assert torch.equal(problem.net[0].weight, again.net[0].weight)  # the seed is that of the chains alone


def test_digits_beyond_those_that_there_are_are_shifted():
    images, labels = digits(2000)
    assert images.shape == (2000, 64)
    assert torch.equal(labels[1797:], labels[:203])
    before, after = images[:203].view(-1, 8, 8), images[1797:].view(-1, 8, 8)
    assert torch.equal(after[:, :, 1:], before[:, :, :-1])
    assert len(images.unique(dim=0)) > 1990


def test_everyone_runs_once_a_repeat_and_nobody_is_always_first():
    turns = list(take_turns(["a", "b", "c"], 3))
    for repeat in range(3):
        assert sorted(name for number, name in turns if number == repeat) == ["a", "b", "c"]
    assert {name for place, (_, name) in enumerate(turns) if place % 3 == 0} == {"a", "b", "c"}
    assert ratios([timed(3.0), timed(8.0)], [timed(1.0), timed(4.0)]) == [3.0, 2.0]


def noisy(truth, count, noise, seed=0):
    return [truth + noise * normals(*truth.shape, seed=seed + i) for i in range(count)]


def test_agreement_reaches_its_ceiling_where_both_estimate_the_same():
    truth = normals(150, 80)
    found = agreement(noisy(truth, 4, 1.0, seed=10), noisy(truth, 4, 0.5, seed=20))
    expected = 1 / math.sqrt(2 * 1.25)  # reliabilities ½ and ⅘
    assert found.ceiling == pytest.approx(expected, abs=4 / math.sqrt(truth.numel()))
    assert found.alike == pytest.approx(expected, abs=4 / math.sqrt(truth.numel()))
    assert found.signs > 0.99
    assert found.scale == pytest.approx(math.sqrt(1.25 / 2), abs=0.02)


def test_agreement_tells_other_signs_other_sizes_and_other_matrices():
    truth = normals(60, 40)
    ours = noisy(truth, 3, 0.1, seed=10)
    turned = agreement(ours, [-2 * m for m in noisy(truth, 3, 0.1, seed=20)])
    assert turned.alike < -0.9
    assert turned.signs == 0
    assert abs(turned.scale - 2) < 5 * turned.scale_error
    stranger = agreement(ours, noisy(normals(60, 40, seed=5), 3, 0.1, seed=20))
    assert abs(stranger.alike) < 0.1 < 0.9 < stranger.ceiling


def test_agreement_leaves_the_diagonal_of_kernels_out():
    ours, theirs = noisy(normals(30, 30), 2, 1.0, seed=1), noisy(normals(30, 30, seed=7), 2, 1.0, seed=5)
    for matrix in (*ours, *theirs):
        matrix.diagonal().fill_(1e6)
    assert abs(agreement(ours, theirs).alike) < 0.2


def test_the_joint_ratio_is_to_the_dearest_of_each_repeat():
    seconds = {"x": [1.0, 6.0], "y": [2.0, 5.0], "together": [3.0, 6.0]}
    found = {name: {"processor": times} for name, times in seconds.items()}
    assert joint_ratios(found, "processor") == [1.5, 1.0]


def test_scores_of_influences_that_are_right_and_the_best_damping():
    subsets = random_subsets(20, num_subsets=12)
    influence = normals(20, 5)
    losses = (subsets.double() @ influence)[:, None].repeat(1, 2, 1)
    runs = {
        "Bayesian influence": [timed(4.0, {"influence": influence, "normalized": -influence})],
        "Gauss-Newton": [timed(1.0, {"0.01": normals(20, 5, seed=2)})],
        "Gauss-Newton, others": [timed(2.0, {"0.1": 3 * influence, "1": -influence})],
    }
    found = score(runs, [{0.5: Retrained(subsets, losses)}])
    means = {name: by_share[0.5][0] for name, by_share in found.items()}
    assert means["Bayesian influence"] == pytest.approx(1)
    assert means["Bayesian influence, normalized"] == pytest.approx(-1)
    assert means["Gauss-Newton 0.1"] == pytest.approx(1)
    assert means["Gauss-Newton 1"] == pytest.approx(-1)
    assert means[CEILING] == pytest.approx(1)
    assert best(found, "Gauss-Newton", 0.5) == "Gauss-Newton 0.1"
    table = render(found, runs, [0.5])
    timed_rows = [line.split("|")[0].strip() for line in table.splitlines() if "(" in line]
    assert timed_rows == ["Bayesian influence", "Gauss-Newton 0.01"]
    assert "Gauss-Newton, chosen by the scores themselves: 0.1 at 0.5" in table


def here(contender, question, *, threads):
    """A contender's work in this process, which needs no interpreter to be started."""
    return timed(1.0, importlib.import_module(contender.module).prepare(question, **contender.options)(False))


def covariances_of_ours(output):
    covariances_main(
        ["--small", "--cases", "influence", "--contenders", "ours", "--repeats", "1", f"--output={output}"]
    )
    (case,) = json.loads(output.read_text())["cases"]
    assert case["contenders"]["ours"]["scale"] == 1
    return case["contenders"]["ours"]


def test_covariances_run_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.covariances.__main__.run", here)
    assert covariances_of_ours(tmp_path / "found.json")["processor_seconds"] == [1.0]
    assert "influence of 200 on 100 digits" in capsys.readouterr().out


@pytest.mark.slow  # starts an interpreter that imports everything
def test_covariances_run_small_in_a_process_of_their_own(tmp_path):
    found = covariances_of_ours(tmp_path / "found.json")
    assert found["processor_seconds"][0] > 0
    assert found["peak_bytes"][0] >= 0


def test_a_contender_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"nowhere failed: [\s\S]*No module named 'nowhere'"):
        run(Contender(Path(sys.executable), "nowhere"), {})


def test_retraining_runs_small_without_its_peer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.retraining.__main__.run", here)
    output = tmp_path / "found.json"
    counts = {"num-train": 30, "num-query": 6, "hidden": 3, "num-subsets": 4, "num-inits": 2, "num-steps": 5}
    words = [f"--{name}={value}" for name, value in {**counts, "num-chains": 2, "num-draws": 5, "shares": 0.5}.items()]
    retraining_main([*words, "--no-peer", "--seeds", "0", "1", f"--output={output}"])
    written = json.loads(output.read_text())
    dampings = {f"Gauss-Newton {damping}" for damping in ("0.003", "0.01", "0.03", "0.1")}
    ours = {"Bayesian influence", "Bayesian influence, normalized", "gradient dot product"}
    assert set(written["scores"]) == ours | dampings | {CEILING}
    assert all(len(row["lds"]["0.5"]) == 2 for row in written["scores"].values())
    assert "best damping of Gauss-Newton" in capsys.readouterr().out


def test_a_joint_reading_runs_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.joint.__main__.CASE", replace(CASE, num_train=100, num_draws=5))
    output = tmp_path / "found.json"
    joint_main(["--small", "--repeats", "1", f"--output={output}"])
    written = json.loads(output.read_text())
    assert set(written["seconds"]) == {"LLC", "loss kernel", "influence", "together"}
    assert written["ratio"]["processor"][0] > 0
    assert "together over the dearest alone" in capsys.readouterr().out
