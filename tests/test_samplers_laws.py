"""Samplers beyond SGLD against their exact stationary laws on quadratics; see ``test_sgld`` for the tolerances."""

import math
from dataclasses import replace
from typing import Any

import oracles
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import lightning_slt as slt

NBETA, LOCALIZATION = 50.0, 0.05
CHAINS = 128
LIMIT = 4.0  # standard errors: the tests below make about 50 comparisons, one in 300 runs would exceed it by chance
ERROR = 0.01  # and the standard error itself is below one percent, so the tests can fail
DOUBLE = torch.float64


def moments(
    sampler: slt.Sampler,
    precision: Tensor,
    *,
    num_burnin: int,
    num_draws: int,
    thinning: int,
    copies: int = 16,
    chains: int = CHAINS,
    noise: float = 0.0,
    batch_size: int = 4,
) -> Tensor:
    """``w²`` averaged over draws ``[chain, direction, copy]``; ``noise`` is the standard deviation of that of nβ∇L."""
    curvatures = ((precision - LOCALIZATION) / NBETA).repeat_interleave(copies)
    posterior = oracles.quadratic_posterior(curvatures, nbeta=NBETA, localization=LOCALIZATION)
    data = oracles.noiseless(dimension=len(curvatures))
    if noise:  # an epoch is longer than the run: minibatches are all but independent
        z = torch.randn(2**13, len(curvatures), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
        z = (z - z.mean(0)) / z.std(0)
        data = oracles.in_memory(TensorDataset(z * noise / NBETA * math.sqrt(batch_size)))
    config = slt.SamplingConfig(
        num_chains=chains,
        num_draws=num_draws,
        num_burnin=num_burnin,
        thinning=thinning,
        batch_size=batch_size if noise else 2,
        seed=1,
    )
    total = torch.zeros(chains, len(curvatures), dtype=DOUBLE)
    for draw in slt.sample(posterior, sampler, data, config):
        total += draw.position.square()
    return (total / num_draws).unflatten(1, (len(precision), copies))


def check(found: Tensor, expected: Tensor, *, bias: float = 0.0) -> None:
    """Every direction within ``LIMIT`` standard errors of its law, or of a band of ``bias`` around it."""
    relative = found / expected
    stderr = relative.std(0) / math.sqrt(len(relative))
    apart = (relative.mean(0) - 1).abs() - bias
    assert float(stderr.max()) < ERROR
    assert float((apart / stderr).max()) < LIMIT, f"over exact law: {relative.mean(0)}, standard errors {stderr}"


def independent(found: Tensor) -> Tensor:
    """Chains and copies alike are independent of each other: ``[chain × copy, direction]``."""
    return found.movedim(2, 1).flatten(0, 1)


PRODUCTS = torch.tensor([0.01, 0.1, 1.0, 3.0], dtype=DOUBLE)


@pytest.mark.parametrize("friction", [0.1, 1.0])
def test_sghmc(friction: float) -> None:
    precision = (PRODUCTS if friction < 1 else PRODUCTS[1:]) / 0.01
    sampler = slt.SGHMC(step_size=0.01, friction=friction)
    found = moments(sampler, precision, num_burnin=250, num_draws=200, thinning=4)
    check(independent(found), oracles.sghmc_variance(precision, 0.01, friction))


def test_sghmc_is_heated_by_minibatches() -> None:
    precision, noise = PRODUCTS[1:] / 0.01, math.sqrt(0.5 * 4 * 0.1 / 0.01)  # ε s²/(4α) = ½
    found = moments(slt.SGHMC(step_size=0.01), precision, num_burnin=150, num_draws=150, thinning=3, noise=noise)
    check(independent(found), oracles.sghmc_variance(precision, 0.01, 0.1, noise))


@pytest.mark.parametrize(("product", "noise"), [(0.1, 0.0), (1.0, 0.0), (3.0, 0.0), (1.0, 1.0)])
def test_sgnht(product: float, noise: float) -> None:
    """The law is that of infinitely many directions: 1 % of bias is allowed for 512."""
    precision = torch.tensor([product / 0.1], dtype=DOUBLE)
    sampler = slt.SGNHT(step_size=0.1)
    found = moments(sampler, precision, num_burnin=200, num_draws=80, thinning=4, copies=512, chains=16, noise=noise)
    check(found.mean(2), oracles.sgnht_variance(precision, 0.1, 0.1, noise), bias=0.01)


STEPS = torch.tensor([0.01, 0.25, 1.0, 2.25], dtype=DOUBLE)  # h² P


def test_underdamped() -> None:
    precision = STEPS / 0.1**2
    sampler = slt.UnderdampedLangevin(step_size=0.1, friction=4.0)
    found = moments(sampler, precision, num_burnin=250, num_draws=200, thinning=4)
    check(independent(found), 1 / precision)


def test_underdamped_is_heated_by_minibatches() -> None:
    precision, noise = STEPS[1:] / 0.1**2, 5.0
    sampler = slt.UnderdampedLangevin(step_size=0.1, friction=4.0)
    found = moments(sampler, precision, num_burnin=150, num_draws=150, thinning=3, noise=noise)
    check(independent(found), oracles.underdamped_variance(precision, 0.1, 4.0, noise))


def test_mala() -> None:
    precision = torch.tensor([0.2, 0.5, 1.0], dtype=DOUBLE) / 0.01
    sampler = oracles.Watched(step_size=0.01, inner=slt.MALA(step_size=0.01))
    found = moments(sampler, precision, num_burnin=150, num_draws=500, thinning=2, copies=8)
    check(found.mean(2), 1 / precision)
    rate = float(sampler.states[0]["accepted"].double().mean()) / 1150
    assert 0.4 < rate < 0.9  # else SGLD's own law, 5 to 33 % off, or nothing, would be tested


def test_hmc() -> None:
    precision = torch.tensor([0.0625, 0.25, 0.5625], dtype=DOUBLE) / 0.1**2
    sampler = oracles.Watched(step_size=0.1, inner=slt.HMC(step_size=0.1, num_leapfrog=3))
    found = moments(sampler, precision, num_burnin=30, num_draws=120, thinning=1, copies=8, chains=192)
    check(found.mean(2), 1 / precision)
    assert 0.4 < float(sampler.states[0]["accepted"].double().mean()) / 150 < 0.97


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize(
    "sampler",
    [
        slt.SGHMC(step_size=0.01),
        slt.UnderdampedLangevin(step_size=0.1, friction=4.0),
        slt.MALA(step_size=0.01),
        slt.HMC(step_size=0.1, num_leapfrog=3),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_temperature_scales_the_law(sampler: slt.Sampler, temperature: float) -> None:
    precision = torch.tensor([20.0, 50.0], dtype=DOUBLE)
    hot = replace(sampler, temperature=temperature)
    found = moments(hot, precision, num_burnin=100, num_draws=100, thinning=2, copies=8)
    law = oracles.sghmc_variance(precision, 0.01, 0.1) if isinstance(sampler, slt.SGHMC) else 1 / precision
    relative = found.mean(2) / (temperature * law)
    assert float((relative.std(0) / math.sqrt(CHAINS)).max()) < 2 * ERROR
    assert float(oracles.z_scores(relative, torch.ones(2, dtype=DOUBLE)).abs().max()) < LIMIT


@pytest.mark.parametrize("b1", [None, 0.9])
@pytest.mark.parametrize("damping", [0.1, 0.02])
def test_a_frozen_preconditioner_is_sgld_with_a_step_size_for_each_coordinate(b1: float | None, damping: float) -> None:
    precision = torch.tensor([15.0, 40.0, 100.0], dtype=DOUBLE)
    more: dict[str, Any] = {"step_size": 0.05 * damping, "damping": damping, "num_adapt": 150}
    inner = slt.RMSPropSGLD(**more) if b1 is None else slt.AdamSGLD(betas=(b1, 0.99), **more)
    sampler = oracles.Watched(step_size=inner.step_size, inner=inner)
    found = moments(sampler, precision, num_burnin=200, num_draws=150, thinning=4)
    step_sizes = (inner.step_size * sampler.states[0]["root"].square()).view_as(found)
    assert float(step_sizes.std(0).min()) > 0  # each chain and coordinate has its own
    precision = precision[:, None].expand_as(found)
    if b1 is None:
        law = 1 / (1 - step_sizes * precision / 4) / precision
    else:
        curvature = (precision - LOCALIZATION) / NBETA
        law = oracles.adam_sgld_variance(curvature, step_sizes, b1=b1, nbeta=NBETA, localization=LOCALIZATION)
    check(independent(found / law), torch.ones(3, dtype=DOUBLE))


def test_small_gradients_make_rmsprop_sgld_at_another_step_size() -> None:
    """``|g| ≪ a``: SGLD at ε/a, with either form and from the first kept draw on, though v started at one."""
    damping = 100.0
    precision = torch.tensor([10.0, 100.0], dtype=DOUBLE)
    found = moments(
        slt.RMSPropSGLD(step_size=0.01 * damping, damping=damping, num_adapt=20),
        precision,
        num_burnin=100,
        num_draws=150,
        thinning=4,
    )
    check(independent(found), oracles.sgld_variance(precision, 0.01))


class TestAdaptationBias:
    """Adapting while sampling heats the chain by as much as the docstring says; a frozen preconditioner does not."""

    @pytest.mark.parametrize(("decay", "variance"), [(0.5, 1.44), (0.9, 1.37), (0.99, 1.16), (0.999, 1.03)])
    def test_of_one_direction(self, decay: float, variance: float) -> None:
        """``|g| = a``, relaxation time 100 steps; the figures are those of a simulation of the law alone."""
        precision = torch.tensor([100.0], dtype=DOUBLE)  # at nβ = 50, g = 2 w: 0.2 typically
        sampler = slt.RMSPropSGLD(step_size=8e-5, damping=0.2, decay=decay, adaptation="always")
        found = moments(
            sampler, precision, num_burnin=int(500 + 3 / (1 - decay)), num_draws=100, thinning=15, copies=64, chains=64
        )
        check(independent(found) * precision, torch.tensor([variance], dtype=DOUBLE), bias=0.01)

    @pytest.mark.parametrize(
        ("sampler", "ratio"),
        [
            (slt.RMSPropSGLD(step_size=2e-4, damping=0.1, adaptation="always", second_moment="zero"), 1.08),
            (slt.RMSPropSGLD(step_size=2e-5, damping=0.01, adaptation="always", second_moment="zero"), 1.42),
            (slt.RMSPropSGLD(step_size=2e-5, damping=0.01, adaptation="always"), 1.42),
            (slt.RMSPropSGLD(step_size=2e-5, damping=0.01), 1.0),
            (slt.AdamSGLD(step_size=2e-5, damping=0.01, betas=(0.0, 0.99)), 1.0),
        ],
        ids=["0.1", "0.01", "0.01 from one", "frozen", "frozen Adam"],
    )
    @pytest.mark.slow
    def test_of_an_llc(self, sampler: slt.Sampler, ratio: float) -> None:
        curvatures = torch.logspace(-2, 0, 200, dtype=DOUBLE)
        posterior = oracles.quadratic_posterior(curvatures, nbeta=100.0, localization=0.0)
        config = slt.SamplingConfig(num_chains=16, num_draws=400, num_burnin=5000, thinning=20, batch_size=2, seed=1)
        found = torch.zeros(16, dtype=DOUBLE)
        for draw in slt.sample(posterior, sampler, oracles.noiseless(dimension=200), config):
            found += 100 * draw.loss / config.num_draws
        relative = found / slt.theory.quadratic_llc(curvatures, nbeta=100.0, localization=0.0)
        check(relative[:, None], torch.tensor([ratio], dtype=DOUBLE), bias=0.01)


class TestLaws:
    """The closed forms of the docstrings against the covariance equation of each step, and the published figures."""

    def test_sghmc(self) -> None:
        alpha, eps, s = 0.1, 0.01, 3.0
        precision = PRODUCTS / eps
        eta, one = eps / 2, torch.ones(4, dtype=DOUBLE)
        rows = [1 - eta * precision, (1 - alpha) * one, -eta * precision, (1 - alpha) * one]  # of (w, u)
        kick = (2 * alpha * eta + eta**2 * s**2) * one
        law = oracles.stationary(torch.stack(rows, -1).unflatten(-1, (2, 2)), torch.stack([kick] * 4, -1))[..., 0, 0]
        torch.testing.assert_close(oracles.sghmc_variance(precision, eps, alpha, s), law, rtol=1e-9, atol=0)
        published = torch.tensor([1.0013, 1.0133, 1.1515, 1.6522], dtype=DOUBLE)
        torch.testing.assert_close(
            oracles.sghmc_variance(precision, eps, 0.1) * precision, published, atol=5e-5, rtol=0
        )

    def test_sgnht(self) -> None:
        published = torch.tensor([0.9471, 0.9465, 0.9385, 0.9058], dtype=DOUBLE)
        found = oracles.sgnht_variance(PRODUCTS, 1.0, 0.1) * PRODUCTS
        torch.testing.assert_close(found, published, atol=1e-4, rtol=0)

    def test_underdamped(self) -> None:
        h, eta, s = 0.1, 2.0, 3.0
        precision = STEPS / h**2
        c, one = math.exp(-eta * h), torch.ones(4, dtype=DOUBLE)
        half = h / 2 * (1 + c)
        rows = [1 - half * h * precision, half * one, -c * h * precision, c * one]  # of (w, v)
        kick, fresh = torch.tensor([half, c]) * h * s, torch.tensor([h / 2, 1.0]) * math.sqrt(1 - c**2)
        both = (torch.outer(kick, kick) + torch.outer(fresh, fresh)).double().flatten().expand(4, 4)
        law = oracles.stationary(torch.stack(rows, -1).unflatten(-1, (2, 2)), both)[..., 0, 0]
        torch.testing.assert_close(oracles.underdamped_variance(precision, h, eta, s), law, rtol=1e-6, atol=0)
        soft = oracles.underdamped_variance(precision, h, eta, s)[0] * precision[0]
        assert float(soft) == pytest.approx(1.225, abs=2e-3)

    def test_adam(self) -> None:
        """``(1 + (ε G P/2) b₁/(1 − b₁)) / (1 − ε P/4)`` to first order in the step size."""
        curvature, b1 = torch.tensor([2.0], dtype=DOUBLE), 0.9
        for eps in (1e-4, 1e-5):
            law = oracles.adam_sgld_variance(
                curvature, torch.tensor([eps], dtype=DOUBLE), b1=b1, nbeta=50.0, localization=0.0
            )
            excess = float(law) * 100 - 1
            assert excess == pytest.approx(eps * 100 / 2 * b1 / (1 - b1) + eps * 100 / 4, rel=1000 * eps)
        none = oracles.adam_sgld_variance(
            curvature, torch.tensor([0.01], dtype=DOUBLE), b1=0.0, nbeta=50.0, localization=0.0
        )
        assert float(none) == pytest.approx(float(oracles.sgld_variance(torch.tensor(100.0), 0.01)), rel=1e-6)
