"""Linear datamodelling scores: retraining against a plain loop, rank correlations, ceilings and intervals."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.retraining import (
    Retrained,
    lds,
    noise_ceiling,
    random_subsets,
    retrain,
    retrain_each,
    spearman,
)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def task(n=30, q=7):
    x = normals(n + q, 4)
    y = (x[:, 0] > 0).long()
    return TensorDataset(x[:n], y[:n]), TensorDataset(x[n:], y[n:])


def make():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def trained_plainly(module, train, query, steps, optimizer):
    descent, (x, y) = optimizer(list(module.parameters())), train
    for _ in range(steps):
        descent.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        descent.step()
    return nn.functional.cross_entropy(module(query[0]), query[1], reduction="none").detach()


@pytest.mark.parametrize(
    "optimizer",
    [lambda w: torch.optim.AdamW(w, lr=1e-2, weight_decay=0.1), lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9)],
)
def test_all_at_once_is_one_after_another(optimizer):
    train, query = task()
    subsets = random_subsets(30, share=0.4, num_subsets=6)
    starts = []

    def remembered():
        starts.append(make())
        return starts[-1]

    found = retrain(remembered, train, query, subsets, loss_fn=slt.losses.classification, optimizer=optimizer,
                    num_steps=150, num_seeds=2)  # fmt: skip
    assert found.losses.shape == (6, 2, 7)
    for seed, start in enumerate(starts):
        for row, subset in enumerate(subsets):
            module = make()
            module.load_state_dict(start.state_dict())
            part = tuple(t[subset] for t in train.tensors)
            plain = trained_plainly(module, part, query.tensors, 150, optimizer)
            assert torch.allclose(found.losses[row, seed], plain, rtol=0, atol=1e-9)


def adam(weights):
    return torch.optim.Adam(weights, lr=1e-2)


def test_initializations_are_seeded_and_leave_no_trace():
    train, query = task()
    subsets = random_subsets(30, num_subsets=4)
    settings = {"loss_fn": slt.losses.classification, "optimizer": adam, "num_steps": 3, "num_seeds": 2}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = retrain(make, train, query, subsets, **settings).losses
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(first, retrain(make, train, query, subsets, **settings).losses)
    assert not torch.allclose(first[:, 0], first[:, 1])
    assert not torch.allclose(first, retrain(make, train, query, subsets, seed=1, **settings).losses)


def test_minibatches_use_every_sample_of_a_subset_once_an_epoch():
    x = torch.eye(6, dtype=torch.float64)
    data = TensorDataset(x, torch.zeros(6, 1, dtype=torch.float64))
    subsets = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]], dtype=torch.bool)

    def zeros():
        net = nn.Linear(6, 1, bias=False).double()
        nn.init.zeros_(net.weight)
        return net

    def pull(module, batch):  # each sample moves its own weight by lr/batch a visit
        return -module(batch[0])[:, 0]

    found = retrain(zeros, data, data, subsets, loss_fn=pull, optimizer=lambda w: torch.optim.SGD(w, lr=1.0),
                    num_steps=4, num_seeds=1, batch_size=2)  # fmt: skip
    assert torch.equal(-found.losses[:, 0], subsets.double())  # two epochs of two steps: 2 · ½ each


def test_a_function_of_the_users():
    subsets = random_subsets(10, num_subsets=3)
    found = retrain_each(
        lambda indices, seed: indices.double().sum() + torch.tensor([seed, 10.0]), subsets, num_seeds=2
    )
    assert found.losses.shape == (3, 2, 2)
    assert torch.equal(found.losses[:, 1, 0], subsets.double() @ torch.arange(10.0).double() + 1)


def test_random_subsets():
    subsets = random_subsets(40, share=0.25, num_subsets=2000)
    assert bool((subsets.sum(1) == 10).all())
    shares = subsets.double().mean(0)
    assert float((shares - 0.25).abs().max()) < 5 * math.sqrt(0.25 * 0.75 / 2000)
    assert torch.equal(subsets, random_subsets(40, share=0.25, num_subsets=2000))
    assert not torch.equal(subsets, random_subsets(40, share=0.25, num_subsets=2000, seed=1))


def test_rank_correlations_are_scipys():
    a, b = normals(5, 20), normals(5, 20, seed=1)
    b[:, ::3] = a[:, ::3].round()  # ties
    a[:, 1::4] = 0.5
    truth = torch.tensor([stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert torch.allclose(spearman(a, b), truth, rtol=0, atol=1e-12)


def additive(noise, *, seeds=4, subsets=60, queries=20, seed=0):
    """Losses that are exactly a sum of influences, and noise of each seed; the influences."""
    influence = normals(40, queries, seed=seed)
    members = random_subsets(40, num_subsets=subsets, seed=seed)
    exact = members.double() @ influence
    spread = exact.std()
    return Retrained(
        members, exact[:, None] + noise * spread * normals(subsets, seeds, queries, seed=seed + 1)
    ), influence


def test_the_score_of_influences_that_are_right():
    retrained, influence = additive(0.0)
    found = lds(influence, retrained)
    assert found.score == pytest.approx(1.0)
    assert found.ceiling == pytest.approx(1.0)
    assert lds(-influence, retrained).score == pytest.approx(-1.0)
    assert lds(2 * influence + 5, retrained).score == pytest.approx(1.0)  # subsets of one size: constants drop out
    assert str(found).startswith("1.000 [")


def test_the_ceiling_is_what_a_perfect_prediction_reaches():
    runs = [additive(1.5, queries=60, subsets=200, seed=s) for s in (0, 10, 20)]
    reached = torch.tensor([lds(influence, r, num_resamples=2).score for r, influence in runs])
    ceilings = torch.tensor([noise_ceiling(r.losses) for r, _ in runs])
    error = (reached - ceilings).std() / math.sqrt(3) + 0.01  # ranks of normal numbers: Pearson's formula is 1 % off
    assert abs(float((reached - ceilings).mean())) < 4 * error
    assert float(ceilings.mean()) < 0.9
    noise = Retrained(runs[0][0].subsets, normals(200, 1, 60))
    assert math.isnan(noise_ceiling(noise.losses))


def test_intervals_cover():
    truth = torch.tensor([lds(i, r, num_resamples=2).score for r, i in
                          (additive(2.0, subsets=30, queries=10, seed=3 * s) for s in range(400))]).mean()  # fmt: skip
    count = 250
    hits = 0
    for s in range(count):
        retrained, influence = additive(2.0, subsets=30, queries=10, seed=10_000 + 3 * s)
        found = lds(influence, retrained, num_resamples=50, seed=s)
        hits += found.lower <= truth <= found.upper
    assert abs(hits / count - 0.9) < 4 * math.sqrt(0.9 * 0.1 / count)


def test_what_cannot_be():
    train, query = task()
    subsets = random_subsets(30, num_subsets=3)
    settings = {"loss_fn": slt.losses.classification, "optimizer": adam, "num_steps": 1}
    with pytest.raises(ValueError, match="subsets must be boolean \\[subset, sample\\] for 30 samples"):
        retrain(make, train, query, subsets[:, :20], **settings)
    subsets[0, subsets[0].nonzero()[0]] = False
    with pytest.raises(ValueError, match="all of one size"):
        retrain(make, train, query, subsets, **settings)
    with pytest.raises(ValueError, match=r"share must leave some of 10 samples in and some out, got 0\.01"):
        random_subsets(10, share=0.01)
    with pytest.raises(ValueError, match=r"influence must be \[train, query\] = \(30, 7\), got \(7, 30\)"):
        lds(torch.zeros(7, 30), Retrained(subsets, torch.zeros(3, 1, 7)))


def test_the_example_runs_small(tmp_path, monkeypatch, capsys):
    counts = {"num-train": 30, "num-query": 5, "hidden": 3, "num-subsets": 4, "num-seeds": 2, "num-steps": 5}
    words = [f"--{name}={value}" for name, value in {**counts, "num-chains": 2, "num-draws": 5, "shares": 0.5}.items()]
    monkeypatch.setattr("sys.argv", ["influence_retraining.py", *words, f"--folder={tmp_path}"])
    example = Path(__file__).parents[1] / "examples" / "influence_retraining.py"
    with pytest.raises(SystemExit):
        runpy.run_path(str(example), run_name="__main__")
    written = json.loads((tmp_path / "influence_retraining.json").read_text())
    assert set(written["scores"]["0.5"]) == {"influence", "normalized", "dot", "cosine", "damped"}
    assert len(written["checks"]) == 4
    printed = capsys.readouterr().out
    assert all(f"{'yes' if held else 'NO ':3} {what}" in printed for what, held in written["checks"].items())
    assert (tmp_path / "influence_retraining.png").stat().st_size > 0
