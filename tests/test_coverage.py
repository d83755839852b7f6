"""Error bars that cover: 200 seeds of a few chains each, run as one batch of chains and then told apart."""

import math

import pytest
import torch

import lightning_slt as slt
from lightning_slt.estimators.base import Run
from lightning_slt.posterior import LocalPosterior
from lightning_slt.types import Draw

SEEDS, CHAINS = 200, 4
CURVATURES = torch.logspace(-1, 0.5, 10, dtype=torch.float64)
CONSTANTS = {"nbeta": 50.0, "localization": 10.0, "step_size": 2e-3}


def covered(estimates, truth, level=0.9):
    inside = [low <= truth <= high for low, high in (e.interval(level) for e in estimates)]
    return sum(inside) / len(inside)


def grouped(draws, *, share_batches=False):
    """The estimate of each seed's own chains from draws of all."""
    accumulators = [
        slt.LLC().start(
            Run(
                num_chains=CHAINS,
                num_draws=len(draws),
                nbeta=CONSTANTS["nbeta"],
                localization=CONSTANTS["localization"],
                dimension=len(CURVATURES),
                share_batches=share_batches,
            )
        )
        for _ in range(SEEDS)
    ]
    for draw in draws:
        for seed, accumulator in enumerate(accumulators):
            rows = slice(seed * CHAINS, (seed + 1) * CHAINS)
            accumulator.update(
                Draw(
                    chains=tuple(range(CHAINS)),
                    index=draw.index,
                    step=draw.step,
                    loss=draw.loss[rows],
                    anchor_loss=draw.anchor_loss[rows],
                    position=draw.position[rows],
                )
            )
    return [a.compute() for a in accumulators]


def run(loss, data, **sampling):
    anchor = {"w": torch.zeros(len(CURVATURES), dtype=torch.float64)}
    posterior = LocalPosterior(
        loss=loss, anchor=anchor, nbeta=CONSTANTS["nbeta"], localization=CONSTANTS["localization"]
    )
    config = slt.SamplingConfig(num_chains=SEEDS * CHAINS, num_draws=60, num_burnin=150, thinning=2, **sampling)
    draws = []
    for draw in slt.sample(posterior, slt.SGLD(step_size=CONSTANTS["step_size"]), data, config):
        draws.append(draw)
    return draws


def test_intervals_cover_as_often_as_they_say():
    truth = slt.theory.sgld_quadratic_llc(CURVATURES, **CONSTANTS)
    draws = run(lambda w, batch: (CURVATURES * w["w"].square()).sum() / 2, [torch.zeros(1)], batch_size=1)
    estimates = grouped(draws)
    assert 0.85 <= covered(estimates, truth) <= 0.95
    everything = torch.stack([e.per_chain for e in estimates]).flatten()
    assert abs(everything.mean() - truth) < 4 * everything.std() / math.sqrt(len(everything))


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_other_levels_of_exact_normal_chains(level):
    """The interval alone: chain means that are exactly normal around a known value."""
    values = torch.randn(2000, CHAINS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimates = [
        slt.Estimate(
            mean=float(row.mean()),
            stderr=float(row.std()) / math.sqrt(CHAINS),
            per_chain=row,
            health=slt.Health(ok=True),
        )
        for row in values
    ]
    spread = math.sqrt(level * (1 - level) / len(values))
    assert abs(covered(estimates, 0.0, level) - level) < 4 * spread


def shared_noise_draws(*, correlation, seed):
    """Draws whose minibatch part is common to the chains of a seed: `Σ_t noise_t` does not average over chains."""
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for index in range(60):
        common = torch.randn(SEEDS, 1, generator=generator, dtype=torch.float64).expand(-1, CHAINS)
        own = torch.randn(SEEDS, CHAINS, generator=generator, dtype=torch.float64)
        loss = (correlation**0.5 * common + (1 - correlation) ** 0.5 * own).flatten()
        draws.append(
            Draw(
                chains=tuple(range(SEEDS * CHAINS)),
                index=index,
                step=index + 1,
                loss=1 + loss,
                anchor_loss=torch.zeros_like(loss),
                position=torch.zeros(SEEDS * CHAINS, 1),
            )
        )
    return draws


def test_shared_minibatches_are_accounted_for():
    draws, truth = shared_noise_draws(correlation=0.5, seed=0), CONSTANTS["nbeta"]
    aware, unaware = grouped(draws, share_batches=True), grouped(draws)
    assert covered(aware, truth) >= 0.85
    assert covered(unaware, truth) < 0.8
