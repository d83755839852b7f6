"""Curvature against the exact Hessian, step sizes that follow it, and settings without a user."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.calibration import (
    MAX_STRETCH,
    STABILITY,
    Settings,
    follow_curvature,
    largest_curvature,
    leading_curvature,
)
from lightning_slt.posterior import LocalPosterior

DATA = [torch.zeros(1)] * 4
SAMPLING = slt.SamplingConfig(num_chains=4, num_draws=100, num_burnin=50, batch_size=4, chain_method="vectorized")


def test_the_largest_curvature_of_a_quadratic():
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]
    hessian = basis @ torch.diag(torch.linspace(0.1, 7.0, 12)) @ basis.T
    posterior = LocalPosterior(
        loss=lambda w, batch: 0.5 * w["w"] @ hessian @ w["w"],
        anchor={"w": torch.zeros(12)},
        nbeta=30.0,
        localization=0.0,
    )
    data = slt.load_data(DATA)
    assert leading_curvature(posterior, data, SAMPLING).value == pytest.approx(7.0, rel=0.1)


def test_the_largest_curvature_of_a_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(64, 5), torch.randint(3, (64,))
    shapes = {name: p.detach() for name, p in net.named_parameters()}

    def loss(weights, batch):
        return nn.functional.cross_entropy(torch.func.functional_call(net, weights, (batch[0],)), batch[1])

    def flat_loss(row):
        parts = row.split([p.numel() for p in shapes.values()])
        return loss({n: v.view(p.shape) for v, (n, p) in zip(parts, shapes.items(), strict=True)}, (x, y))

    row = torch.cat([p.flatten() for p in shapes.values()])
    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(flat_loss, row)).abs().max().item()
    posterior = LocalPosterior(loss=loss, anchor=shapes, nbeta=30.0, localization=0.0)
    sampling = slt.SamplingConfig(batch_size=64, chain_method="vectorized")
    assert largest_curvature(posterior, slt.load_data(TensorDataset(x, y)), sampling) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("nbeta", [1.0, 30.0, 1085.7])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_flat_anchor_shows_the_curvature_within_reach(nbeta, scale):
    """Of a w₁²w₂² the Hessian at 0 is 0, but ‖∇‖/δ at δ (cos θ, sin θ) is c = a δ² sin 2θ, and δ = 0.3/√(nβ c)."""
    posterior = LocalPosterior(
        loss=lambda w, batch: scale * w["w"].prod().square(),
        anchor={"w": torch.zeros(2, dtype=torch.float64)},
        nbeta=nbeta,
        localization=0.0,
    )
    found = leading_curvature(posterior, slt.load_data(DATA), SAMPLING)
    direction = (found.direction / found.direction.norm())[0]  # the iteration swaps its two parts for ever
    within_reach = 0.3 * math.sqrt(scale * 2 * float(direction.prod().abs()) / nbeta)
    assert found.value == pytest.approx(within_reach, rel=0.1)


def settings(curvature):
    step_size = STABILITY / (30 * curvature + 20)
    return Settings(
        sampler=slt.SGLD(step_size=step_size), nbeta=30.0, localization=20.0, sampling=SAMPLING, curvature=curvature
    )


@pytest.mark.parametrize("grown", [0.1, 1.0, 3.0, 10.0, 100.0])
def test_the_step_size_follows_the_curvature(grown):
    before = settings(2.0)
    after = follow_curvature(before, 2.0 * grown)
    stability = after.sampler.step_size * (after.nbeta * 2.0 * grown + after.localization)
    assert after.sampler.step_size <= before.sampler.step_size
    assert stability <= STABILITY * (1 + 1e-9)
    assert after.stability == pytest.approx(stability)
    needed = before.sampler.step_size / after.sampler.step_size
    made = after.sampling.num_burnin / SAMPLING.num_burnin
    assert made == pytest.approx(min(needed, MAX_STRETCH), rel=0.03)
    assert after.steps == pytest.approx(min(1.0, MAX_STRETCH / needed))
    assert (after.nbeta, after.localization) == (before.nbeta, before.localization)


def test_a_longer_step_that_a_search_found_is_kept():
    longer = replace(settings(2.0), sampler=slt.SGLD(step_size=2 * STABILITY / 80), stability=2 * STABILITY)
    assert follow_curvature(longer, 2.0).sampler.step_size == longer.sampler.step_size
    grown = follow_curvature(longer, 6.0)
    assert grown.stability == pytest.approx(2 * STABILITY)
    assert grown.sampler.step_size < longer.sampler.step_size


def test_settings_are_found_for_a_trained_network():
    torch.manual_seed(0)
    x = torch.randn(512, 6)
    data = TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), data.tensors[1]).backward()
        optimizer.step()
    estimate = slt.estimate(net, data, [slt.LLC()], loss_fn=slt.losses.classification)["llc"]
    assert estimate.health.ok, str(estimate.health)
    assert 0 < estimate.mean < sum(p.numel() for p in net.parameters()) / 2
    assert estimate.health.values["step_size"] == pytest.approx(STABILITY, rel=1e-3)
    assert estimate.stderr < 0.2 * estimate.mean


def test_a_loss_without_curvature_needs_a_localization():
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3))

    with pytest.raises(ValueError, match="no localization can be derived"):
        slt.estimate(Slope(), DATA, [slt.LLC()], loss_fn=lambda m, b: m.w.sum().expand(1))
    assert math.isfinite(settings(1.0).resolution)


def test_other_samplers_are_judged_by_their_own_stability():
    net = nn.Linear(3, 1)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, net(x).detach())
    inputs = torch.cat([x, torch.ones(64, 1)], 1)
    curvature = float(torch.linalg.eigvalsh(2 * inputs.T @ inputs / 64).max())
    counts = slt.SamplingConfig(num_chains=2, num_draws=20, thinning=2, batch_size=64)
    for sampler in (slt.UnderdampedLangevin(step_size=0.02, friction=1.0), slt.SGHMC(step_size=1e-3)):
        llc = slt.estimate(
            net, data, [slt.LLC()], sampler=sampler, nbeta=30.0, sampling=counts, loss_fn=slt.losses.regression
        )["llc"]
        expected = sampler.stability(1.1 * 30.0 * curvature)  # γ is a tenth of nβ λ_max
        assert llc.health.values["step_size"] == pytest.approx(expected, rel=0.15)
    llc = slt.estimate(
        net, data, [slt.LLC()], sampler=slt.RMSPropSGLD(step_size=1e-3, num_adapt=10), nbeta=30.0, sampling=counts,
        loss_fn=slt.losses.regression,
    )["llc"]  # fmt: skip
    assert "step_size" not in llc.health.values  # it has none that a curvature alone could tell
