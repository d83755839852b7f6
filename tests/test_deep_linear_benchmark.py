"""The benchmark on deep linear networks: its networks, its loss, its metrics, and its results file."""

import json
import math
import random
import statistics
from itertools import pairwise

import pytest
import torch

from benchmarks.deep_linear import report
from benchmarks.deep_linear.cells import Cell, run_cell
from benchmarks.deep_linear.classes import CLASSES, RECIPES
from benchmarks.deep_linear.contestants import CONTESTANTS
from benchmarks.deep_linear.metrics import (
    absolute,
    median_interval,
    order_preservation,
    relative_errors,
    spread,
)
from benchmarks.deep_linear.networks import (
    DeepLinear,
    make_data,
    make_factors,
    moment_loss,
    multiply,
    plan_network,
    sample_loss,
)
from benchmarks.deep_linear.store import Store
from benchmarks.deep_linear.summary import best, make_rows
from lightning_slt import theory

SMALL = CLASSES["small"]


def plans(recipe, count=30):
    return [plan_network(SMALL, recipe, seed=3, index=i) for i in range(count)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_factors_have_the_stated_shapes_and_ranks(recipe):
    for plan in plans(recipe):
        factors = make_factors(plan)
        assert [tuple(a.shape) for a in factors] == [(out, into) for into, out in pairwise(plan.widths)]
        assert tuple(int(torch.linalg.matrix_rank(a)) for a in factors) == plan.ranks
        assert int(torch.linalg.matrix_rank(multiply(factors))) == plan.rank
        assert sum(a.numel() for a in factors) == plan.parameters


def test_networks_stay_within_their_class_and_vary():
    every = plans("deepest", 200)
    assert {len(plan.widths) - 1 for plan in every} == {2, 3, 4}
    assert {width for plan in every for width in plan.widths} == set(range(4, 13))
    # a layer is cut with probability 1/2 to a rank below full with probability (m - 1)/m; of the product all layers
    # together leave the full rank in far fewer cases
    full = [plan.rank == min(plan.widths) for plan in every]
    assert 10 < sum(full) < 100


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_network_depends_on_its_seed_and_index_alone(recipe):
    first, again = (make_factors(plan_network(SMALL, recipe, seed=1, index=4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert plan_network(SMALL, recipe, seed=2, index=4) != plan_network(SMALL, recipe, seed=1, index=4)


def test_both_recipes_share_widths_and_rank():
    for deepest, paper in zip(plans("deepest"), plans("paper"), strict=True):
        assert (deepest.widths, deepest.rank) == (paper.widths, paper.rank)
        assert paper.truth >= deepest.truth


def test_truths_and_what_they_are():
    for plan in plans("deepest"):
        least, _ = theory.deep_linear_learning_coefficient(plan.widths, rank=plan.rank)
        assert (plan.truth, plan.truth_kind) == (float(least), "exact")
    for plan in plans("paper"):
        two = len(plan.widths) == 3
        assert plan.truth_kind == ("exact" if two else "lower bound")
        if two:
            a, b = (int(torch.linalg.matrix_rank(factor)) for factor in make_factors(plan))
            local = theory.two_factor_local_learning_coefficient(
                plan.widths, first_rank=a, second_rank=b, rank=plan.rank
            )
            assert plan.truth == float(local)


def test_a_turn_of_the_bases_keeps_the_curvatures_of_the_deepest_point():
    plan = next(p for p in plans("deepest") if len(p.widths) == 4)

    def spectrum(factors):
        sizes = [a.numel() for a in factors]
        target = multiply(factors)

        def loss(row):
            parts = [part.view_as(a) for part, a in zip(row.split(sizes), factors, strict=True)]
            return (multiply(parts) - target).square().sum()

        return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, torch.cat([a.flatten() for a in factors])))

    padded = theory.deepest_point(plan.widths, rank=plan.rank, dtype=torch.float64)
    torch.testing.assert_close(spectrum(make_factors(plan)), spectrum(padded), rtol=1e-10, atol=1e-10)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
def test_the_loss_by_second_moments_is_the_mean_loss_with_its_gradient():
    plan = plans("paper")[0]
    module = DeepLinear(make_factors(plan))
    batch = (make_data(SMALL, plan)[:100],)
    assert float(sample_loss(module, batch).detach().max()) < 1e-28
    assert abs(float(moment_loss(module, batch).detach())) < 1e-28
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for factor in module.factors:
            factor += 0.3 * torch.randn(factor.shape, generator=g)
    twins = []
    for loss in (sample_loss(module, batch).mean(), moment_loss(module, batch)):
        twins.append((loss.detach(), *torch.autograd.grad(loss, list(module.parameters()))))
    for plain, fast in zip(*twins, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)


def test_data_fill_their_range():
    plan = plans("deepest")[0]
    x = make_data(CLASSES["1K"], plan)
    assert x.shape == (100_000, plan.widths[0])
    assert 9.9 < float(x.max()) <= 10
    assert -10 <= float(x.min()) < -9.9
    large = CLASSES["100M"]
    assert large.nbeta == pytest.approx(1e6 / math.log(1e6))


def test_data_beyond_the_memory_that_the_package_keeps_are_cut(monkeypatch):
    monkeypatch.setattr("benchmarks.deep_linear.networks.MEMORY_LIMIT", 4 * 1000)
    plan = plans("deepest")[0]
    assert len(make_data(CLASSES["1K"], plan)) == 1000 // plan.widths[0]


def naive_order(estimates, truths):
    right = pairs = 0
    for i in range(len(truths)):
        for j in range(len(truths)):
            if truths[i] < truths[j]:
                pairs += 1
                if estimates[i] is not None and estimates[j] is not None:
                    right += estimates[i] < estimates[j]
                    right += 0.5 * (estimates[i] == estimates[j])
    return right / pairs


def test_order_against_its_naive_twin():
    rng = random.Random(0)
    for _ in range(50):
        truths = [float(rng.randrange(8)) for _ in range(12)]
        estimates = [None if rng.random() < 0.2 else float(rng.randrange(8)) for _ in truths]
        assert order_preservation(estimates, truths) == pytest.approx(naive_order(estimates, truths), abs=1e-12)
    assert order_preservation([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]) == 0
    assert math.isnan(order_preservation([1.0, 2.0], [5.0, 5.0]))


def test_errors_and_quartiles_against_the_standard_library():
    rng = random.Random(1)
    truths = [rng.uniform(1, 50) for _ in range(13)]
    estimates = [t * rng.uniform(0.5, 2) for t in truths]
    errors = relative_errors(estimates, truths)
    assert errors == [e / t - 1 for e, t in zip(estimates, truths, strict=True)] or errors == pytest.approx(
        [e / t - 1 for e, t in zip(estimates, truths, strict=True)], abs=1e-12
    )
    assert tuple(spread(absolute(errors))) == pytest.approx(
        tuple(statistics.quantiles(absolute(errors), n=4, method="inclusive"))
    )


def test_a_missing_estimate_is_the_worst_error():
    assert relative_errors([None, 3.0], [2.0, 2.0]) == [None, 0.5]
    assert spread(absolute([None, 0.5, -0.1])).median == 0.5
    assert spread(absolute([None, None, -0.1])).median == math.inf
    assert spread(absolute([None, None, None])) == (math.inf, math.inf, math.inf)


def test_the_interval_of_a_median_covers_it():
    rng = random.Random(2)
    hits = 0
    for _ in range(100):
        low, high = median_interval([rng.expovariate(1.0) for _ in range(25)], resamples=200)
        hits += low <= math.log(2) <= high
    # 90 of 100 expected, standard deviation 3
    assert 78 <= hits <= 100


def test_step_sizes_reach_two_decades_to_either_side():
    for contestant in CONTESTANTS.values():
        grid = contestant.step_sizes(SMALL)
        assert len(grid) == 9
        assert list(grid) == sorted(grid)
        assert math.log10(grid[-1] / grid[0]) == pytest.approx(4, abs=0.02)
        assert contestant.make(grid[0], SMALL).step_size == grid[0]


def fake_cell(sampler, step_size, index, estimate, **health):
    cell = Cell(network_class="small", recipe="deepest", sampler=sampler, step_size=step_size, seed=0, index=index)
    verdict = {"ok": True, "failed": [], "warnings": [], "values": {}, "dead_chains": 0} | health
    return {
        "key": cell.key, "sampler": sampler, "step_size": step_size, "seed": 0, "index": index,
        "estimate": estimate, "stderr": 0.1, "seconds": 1.0, **verdict,
    }  # fmt: skip


def test_the_store_goes_on_where_it_stopped(tmp_path):
    path, header = tmp_path / "results" / "r.json", {"run": {"num_steps": 5}, "machine": {}}
    store = Store(path, header)
    cell = fake_cell("SGLD", 1e-4, 0, 3.0)
    store.add(cell)
    store.save()
    assert Store(path, header).cells == {cell["key"]: cell}
    assert json.loads(path.read_text())["cells"] == [cell]
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match="another run"):
        Store(path, {"run": {"num_steps": 6}, "machine": {}})


def test_a_cell_with_other_settings_is_another_cell():
    keys = {fake_cell(name, 1e-4, 0, 1.0)["key"] for name in CONTESTANTS}
    assert len(keys) == len(CONTESTANTS)
    keys |= {fake_cell("SGLD", step_size, i, 1.0)["key"] for step_size in (1e-4, 1e-5) for i in (0, 1)}
    assert len(keys) == len(CONTESTANTS) + 3


def test_the_report_finds_the_best_step_and_says_what_health_missed():
    known = {(0, i): plan_network(SMALL, "deepest", seed=0, index=i) for i in range(4)}
    cells = []
    for (_, i), plan in known.items():
        cells.append(fake_cell("SGLD", 1e-6, i, 0.1 * plan.truth, ok=False, failed=["rhat"]))
        cells.append(fake_cell("SGLD", 1e-4, i, 1.02 * plan.truth))
        cells.append(fake_cell("SGLD", 3e-4, i, 1.5 * plan.truth))
        cells.append(fake_cell("SGLD", 1e-2, i, None, ok=False, failed=["finite"]))
    rows = make_rows(cells, known)
    assert [row.step_size for row in rows["SGLD"]] == [1e-6, 1e-4, 3e-4, 1e-2]
    chosen = best(rows["SGLD"])
    assert chosen.step_size == 1e-4
    assert chosen.error.median == pytest.approx(0.02)
    assert chosen.order == 1
    assert chosen.success
    assert rows["SGLD"][-1].error.median == math.inf
    assert rows["SGLD"][-1].order == 0
    lines = [[cell.strip() for cell in line.split("|")] for line in report.health(rows).splitlines()]
    table = {row[1]: row[2:] for row in lines if row[0] == "SGLD"}
    assert table["right"] == ["4", "0 %", "0 %", "100 %", "-"]
    assert table["too low"] == ["4", "100 %", "0 %", "0 %", "rhat 100%"]
    assert table["too high"] == ["4", "0 %", "0 %", "100 %", "-"]
    assert table["no number"] == ["4", "100 %", "0 %", "0 %", "finite 100%"]
    assert "Least error: SGLD at 0.0001" in report.render(rows, known)


def test_a_real_cell(monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(CLASSES, "small", replace(SMALL, num_steps=60, num_samples=1000))
    cell = Cell(network_class="small", recipe="deepest", sampler="SGLD", step_size=1e-4, seed=0, index=0)
    result = run_cell(cell)
    assert result["estimate"] > 0
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    lost = run_cell(replace(cell, step_size=1e3))
    assert lost["estimate"] is None
    assert not lost["ok"]
