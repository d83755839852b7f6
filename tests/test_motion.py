"""How chains move: acceptance against densities, heating against the stationary laws, norms against sums."""

import math
from itertools import pairwise

import oracles
import pytest
import torch
from torch.distributions import Normal

import lightning_slt as slt
from lightning_slt.data import SamplingData

CURVATURES = torch.tensor([0.2, 1.0, 4.0], dtype=torch.float64)
NBETA, GAMMA = 20.0, 3.0


def draws(sampler: slt.Sampler, *, num_draws: int = 4, chains: int = 5) -> list[tuple[slt.Draw, torch.Tensor]]:
    posterior = oracles.quadratic_posterior(CURVATURES, nbeta=NBETA, localization=GAMMA)
    config = slt.SamplingConfig(num_chains=chains, num_draws=num_draws, num_burnin=20, batch_size=100)
    found = []
    for draw in slt.sample(posterior, sampler, oracles.noiseless(dimension=3), config):
        found.append((draw, (draw.position - posterior.anchor_row).clone()))
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_acceptance_is_the_ratio_of_densities(temperature: float) -> None:
    eps, precision = 0.02, NBETA * CURVATURES + GAMMA
    found = draws(slt.SGLD(step_size=eps, temperature=temperature))
    for (_, w), (draw, v) in pairwise(found[:-1]):  # the last draw has no step from it

        def log_target(x: torch.Tensor) -> torch.Tensor:
            return -(precision * x.square()).sum(1) / 2 / temperature

        def log_step(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return Normal(a - eps / 2 * precision * a, (eps * temperature) ** 0.5).log_prob(b).sum(1)

        expected = (log_target(v) - log_target(w) + log_step(v, w) - log_step(w, v)).exp().clamp(max=1)
        assert draw.motion is not None
        torch.testing.assert_close(draw.motion.acceptance, expected, rtol=1e-10, atol=1e-12)
        assert bool((expected < 1).any())


def test_acceptance_falls_with_the_step_and_stands_in_the_health() -> None:
    net = torch.nn.Linear(6, 1)
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, net(x).detach())
    rates = []
    for step_size in (1e-5, 1e-3, 1e-2):
        llc = slt.estimate(
            net, data, [slt.LLC()], sampler=slt.SGLD(step_size=step_size), nbeta=50.0, localization=1.0,
            sampling=slt.SamplingConfig(num_draws=40, num_burnin=100, batch_size=64), loss_fn=slt.losses.regression,
        )["llc"]  # fmt: skip
        rates.append(llc.health.values["acceptance"])
    assert 1 >= rates[0] > rates[1] > rates[2] > 0
    assert rates[0] > 0.99


def test_samplers_without_a_density_have_none() -> None:
    for sampler in (slt.SGHMC(step_size=1e-3), slt.SGLD(step_size=1e-3, temperature=0.0), slt.SGLD(step_size=0.0)):
        assert all(draw.motion is None or draw.motion.acceptance is None for draw, _ in draws(sampler))


HEATED = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
COUNT, BATCH = 40, 8


def noisy(dimension: int) -> SamplingData:
    """Gradients with a noise of known size: whitened, so that it is the same in all directions."""
    z = torch.randn(COUNT, dimension, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = torch.linalg.qr(z - z.mean(0)).Q * math.sqrt(COUNT)
    return oracles.in_memory(torch.utils.data.TensorDataset(z))


NOISE = NBETA * math.sqrt((1 - BATCH / COUNT) / BATCH * COUNT / (COUNT - 1))
"""Standard deviation of nβ∇L in each direction: minibatches are drawn without replacement."""


def heat(sampler: slt.Sampler, curvatures: torch.Tensor, *, localization: float, batch_size: int) -> torch.Tensor:
    """Mean heating of each of many chains ``[chain]``."""
    posterior = oracles.quadratic_posterior(curvatures, nbeta=NBETA, localization=localization)
    config = slt.SamplingConfig(num_chains=300, num_draws=7, num_burnin=300, thinning=30, batch_size=batch_size)
    found = [d.motion for d in slt.sample(posterior, sampler, noisy(len(curvatures)), config) if d.motion is not None]
    return torch.stack([motion.heating for motion in found]).mean(0)


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [
        *((name, size) for name in ("sgld", "rmsprop", "sghmc", "underdamped") for size in (BATCH, COUNT)),
        ("adam", COUNT),  # the oracle of AdamSGLD knows no minibatch noise
    ],
)
def test_heating_is_what_the_stationary_law_has_too_much(name: str, batch_size: int) -> None:
    """``Σ (Var · P − 1) nβh/P`` over the directions, of the exact variance of each sampler: twice the LLC's excess.

    With noise only without localization, as its part in a direction is not weighed by ``nβh/P``.
    """
    noise, gamma = (NOISE, 0.0) if batch_size < COUNT else (0.0, 10.0)
    precision = NBETA * HEATED + gamma
    eps, flat = 0.01, 1e6  # a damping that makes the step sizes of all coordinates ε/a
    adaptive = {"step_size": eps * flat, "damping": flat, "num_adapt": 2}
    sampler, variance = {
        "sgld": (slt.SGLD(step_size=eps), oracles.sgld_variance(precision, eps, noise)),
        "rmsprop": (slt.RMSPropSGLD(**adaptive), oracles.sgld_variance(precision, eps, noise)),
        "adam": (
            slt.AdamSGLD(**adaptive, betas=(0.5, 0.99)),
            oracles.adam_sgld_variance(HEATED, torch.full_like(HEATED, eps), b1=0.5, nbeta=NBETA, localization=gamma),
        ),
        "sghmc": (slt.SGHMC(step_size=eps, friction=0.3), oracles.sghmc_variance(precision, eps, 0.3, noise)),
        "underdamped": (
            slt.UnderdampedLangevin(step_size=0.05, friction=5.0),
            oracles.underdamped_variance(precision, 0.05, 5.0, noise),
        ),
    }[name]
    excess = (precision * variance - 1) * NBETA * HEATED / precision
    if name == "underdamped":
        excess = excess * (1 - 0.05**2 * precision / 4)  # it is exact to leading order in h²P
    measured = heat(sampler, HEATED, localization=gamma, batch_size=batch_size)
    if name == "underdamped" and not noise:
        assert bool((measured == 0).all())
    else:
        assert abs(float(oracles.z_scores(measured, excess.sum()))) < 4


def test_heating_of_the_thermostat() -> None:
    """Which cools: by ζ/2 a direction."""
    curvatures = torch.full((200,), 1.0, dtype=torch.float64)
    posterior = oracles.quadratic_posterior(curvatures, nbeta=NBETA, localization=0.0)
    config = slt.SamplingConfig(num_chains=40, num_draws=7, num_burnin=600, thinning=60, batch_size=COUNT)
    sampler = slt.SGNHT(step_size=0.02, diffusion=0.1)
    moving = slt.sample(posterior, sampler, oracles.noiseless(dimension=200), config)
    found = [d.motion.heating for d in moving if d.motion is not None]
    variance = oracles.sgnht_variance(torch.tensor(NBETA, dtype=torch.float64), 0.02, 0.1)
    assert abs(float(oracles.z_scores(torch.stack(found).mean(0), 200 * (NBETA * variance - 1)))) < 4


def test_norms_are_those_of_the_parts_of_a_step() -> None:
    for draw, offset in draws(slt.SGLD(step_size=0.02))[:-1]:
        assert draw.motion is not None
        torch.testing.assert_close(draw.motion.gradient_norm, NBETA * (CURVATURES * offset).norm(dim=1))
        torch.testing.assert_close(draw.motion.localization_norm, GAMMA * draw.motion.distance)
        total = ((NBETA * CURVATURES + GAMMA) * offset).norm(dim=1)
        torch.testing.assert_close(draw.motion.drift_to_noise, total / draw.motion.noise_norm)
