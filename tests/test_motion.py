"""The acceptance of a Metropolis correction along SGLD, against densities written out."""

from itertools import pairwise

import oracles
import pytest
import torch
from torch.distributions import Normal

import lightning_slt as slt

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
