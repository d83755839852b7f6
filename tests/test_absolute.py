"""The absolute target: its parts one by one, and twelve tasks with a known answer from one default."""

import math
from statistics import median

import oracles
import pytest
import torch
from tasks import TASKS, deep_linear, squared_error
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.calibration.absolute import ACCURACY, HEAT, attempt_absolute, judge_window, pace
from lightning_slt.calibration.walk import Walk
from lightning_slt.finding import calibrate

QUICK = ("quadratic, condition 100", "regression", "deep linear 6-5-6, rank 3")


def solve(task, **more):
    return calibrate(task.module, task.data, target="absolute", loss_fn=task.loss_fn, **more)


@pytest.mark.parametrize("name", [*QUICK[:2], pytest.param(QUICK[2], marks=pytest.mark.slow)])
def test_a_known_answer_without_settings(name):
    task = TASKS[name]()
    found = solve(task)
    assert found.accepted, found.reason
    estimate = found.chosen.estimate
    assert abs(estimate.mean / task.truth - 1) < task.within
    assert abs(estimate.mean - task.truth) < 4 * estimate.stderr + 0.03 * task.truth


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twelve_known_answers_from_one_default():
    """At most three refused; quadratics and crossings within 10 %, deep linear networks within 20 %, half in 10 %."""
    errors = {}
    for name, make in TASKS.items():
        task = make()
        found = solve(task)
        if found.accepted:
            errors[name] = abs(found.chosen.estimate.mean / task.truth - 1)
            assert errors[name] < task.within, name
    assert len(errors) >= 9
    assert median(e for name, e in errors.items() if "deep" in name) < 0.1


def test_the_pace_heats_by_no_more_than_was_allowed():
    for curvature, noise in ((600.0, 0.0), (600.0, 1.0), (600.0, 1e5)):
        h, friction = pace(curvature, noise, 1.0)
        assert h * h * curvature <= ACCURACY * (1 + 1e-9)
        assert h * noise / (2 * friction) <= HEAT * (1 + 1e-9)
        assert friction >= 2.0


def judged(rise, doubled=None):
    return judge_window(rise, rise if doubled is None else doubled, nbeta=1.0)[0].health.failed


def test_each_test_of_a_window_refuses_what_it_is_for():
    g = torch.Generator().manual_seed(0)
    good = 5 + torch.randn(16, 400, generator=g, dtype=torch.float64)
    ramp = torch.linspace(0, 1, 400, dtype=torch.float64)
    apart = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None]
    assert judged(good) == ()
    assert "rhat" in judged(good + 3 * apart)
    assert "drift" in judged(good + ramp)
    assert judged(good, good * 1.2) == ("doubled",)
    assert "stderr" in judged(0.1 + 20 * (good - 5))
    assert {"negative", "below"} <= set(judged(-good))
    assert "doubled" in judged(good, good * math.nan)


def test_minibatch_noise_is_measured():
    """For ℓ = ½‖w‖² + x·w the covariance of nβ g over minibatches is nβ² Cov(x) (1/B − 1/n)."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=g, dtype=torch.float64) * torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    x += 5  # the gradient's mean is no noise
    posterior = oracles.quadratic_posterior(torch.ones(3, dtype=torch.float64), nbeta=50.0, localization=1.0)
    data = oracles.in_memory(TensorDataset(x))
    config = slt.SamplingConfig(num_chains=64, batch_size=10, chain_method="vectorized")
    walk = Walk(posterior, data, config, None, None)
    exact = 50.0**2 * float(torch.linalg.eigvalsh(torch.cov(x.T))[-1]) * (1 / 10 - 1 / 500)
    with torch.no_grad():
        found = walk.noise(posterior.anchor_row.repeat(64, 1))
    assert found == pytest.approx(exact, rel=4 * math.sqrt(2 / 128))  # an eigenvalue of 128 draws
    full = slt.SamplingConfig(num_chains=64, batch_size=500, chain_method="vectorized")
    assert Walk(posterior, data, full, None, None).noise(posterior.anchor_row.repeat(64, 1)) == 0.0


def walk_in(loss, dimension):
    anchor = {"w": torch.zeros(dimension, dtype=torch.float64)}
    posterior = slt.LocalPosterior(loss=lambda w, b: loss(w["w"]), anchor=anchor, nbeta=100.0, localization=1.0)
    config = slt.SamplingConfig(num_chains=16, chain_method="vectorized")
    walk = Walk(posterior, oracles.noiseless(count=10), config, None, None)
    with torch.no_grad():
        return walk.pilot()


def test_the_pilot_sees_the_curvature_on_the_way():
    """Of w₁²w₂² the anchor's own is γ = 1; where chains go it is 2 nβ w²."""
    curvature, position = walk_in(lambda w: w.prod().square(), 2)
    reached = float(2 * 100.0 * position.square().max())
    assert curvature > 10
    assert reached / 30 < curvature < 30 * reached + 10


def test_the_pilot_goes_back_from_a_wall():
    """A flat floor lets the step grow until a chain is thrown against the wall and would be lost."""
    curvature, position = walk_in(lambda w: (w / 0.5).pow(40).sum(), 4)
    assert math.isfinite(curvature)
    assert float(position.abs().max()) < 1.0


def test_noisy_minibatches_are_enlarged():
    g = torch.Generator().manual_seed(0)
    x = 30 * torch.randn(500, 3, generator=g, dtype=torch.float64)
    h = torch.ones(3, dtype=torch.float64)
    posterior = oracles.quadratic_posterior(h, nbeta=50.0, localization=1.0)
    config = slt.SamplingConfig(num_chains=16, batch_size=10, chain_method="vectorized")
    attempt = attempt_absolute(posterior, oracles.in_memory(TensorDataset(x - x.mean(0))), config, max_steps=20_000)
    assert attempt.batch_size > 10
    assert attempt.estimate.health.ok
    assert 2 * attempt.estimate.traces["loss"].shape[1] == attempt.window  # the first half is burn-in
    exact = slt.theory.quadratic_llc(h, nbeta=50.0, localization=1.0)
    assert abs(attempt.estimate.mean - exact) < 4 * attempt.estimate.stderr + 0.03 * exact


def test_what_is_no_minimum_is_refused():
    task = deep_linear([4, 3, 4], 2)
    with torch.no_grad():
        task.module.factors[0].add_(0.5)
    found = calibrate(task.module, task.data, target="absolute", loss_fn=squared_error, max_steps=1600)
    assert not found.accepted
    assert "negative" in found.reason
    assert "cannot be relied on" in found.reason
    with pytest.raises(ValueError, match=r"suggests nothing: after .* steps"):
        found.keywords()


def test_too_few_steps_are_refused():
    found = solve(TASKS["crossing (1, 2)"](), max_steps=1000)
    assert not found.accepted
    assert found.chosen is None
    assert len(found.trials) == 2
