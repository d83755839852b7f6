"""SGLD against its exact discretized law on quadratics: per direction, localized, masked, with minibatch noise."""

import math

import oracles
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.sampling import ChainNoise

STEP = 0.01
PRODUCTS = torch.tensor([0.01, 0.1, 1.0, 3.0], dtype=torch.float64)  # ε P
COPIES = 16  # of each direction, independent of each other
CHAINS = 192
LIMIT = 4.0  # standard errors: the four tests below make 20 comparisons, one in 800 runs would exceed it by chance
PRECISION = 0.01  # and the standard error itself is below one percent, so the tests can fail


def second_moments(
    posterior: slt.LocalPosterior, data: slt.SamplingData, *, num_draws: int, thinning: int, batch_size: int = 2
) -> tuple[Tensor, Tensor]:
    """``w²`` averaged over draws, ``[chain, coordinate]``, and the steps of the draws."""
    config = slt.SamplingConfig(
        num_chains=CHAINS, num_draws=num_draws, num_burnin=0, thinning=thinning, batch_size=batch_size, seed=1
    )
    total, steps = torch.zeros(CHAINS, posterior.dimension, dtype=torch.float64), []
    for draw in slt.sample(posterior, slt.SGLD(step_size=STEP), data, config):
        total += (draw.position - posterior.anchor_row).double().square()
        steps.append(draw.step)
    return total / len(steps), torch.tensor(steps)


def check(moments: Tensor, precision: Tensor, steps: Tensor, noise: float = 0.0) -> None:
    """Every direction within ``LIMIT`` standard errors of the law at finite time, and the error small."""
    expected = oracles.sgld_variance_at(precision, STEP, steps, noise).mean(0)
    copies = moments.reshape(CHAINS, len(precision), -1).movedim(2, 1).flatten(0, 1)  # [chain × copy, direction]
    relative = copies / expected
    z = oracles.z_scores(relative, torch.ones(len(precision), dtype=torch.float64))
    assert float((relative.std(0) / math.sqrt(len(relative))).max()) < PRECISION
    assert float(z.abs().max()) < LIMIT, f"variance over exact law: {relative.mean(0).tolist()}, z = {z.tolist()}"


@pytest.mark.parametrize(
    ("localization", "dtype"), [(0.5, torch.float64), (0.999, torch.float64), (0.5, torch.float32)]
)
def test_variance_of_every_direction(localization: float, dtype: torch.dtype) -> None:
    nbeta, precision = 50.0, PRODUCTS / STEP
    curvatures = ((precision - localization) / nbeta).repeat_interleave(COPIES).to(dtype)
    posterior = oracles.quadratic_posterior(curvatures, nbeta=nbeta, localization=localization)
    moments, steps = second_moments(
        posterior, oracles.noiseless(dtype=dtype, dimension=len(curvatures)), num_draws=400, thinning=3
    )
    check(moments, precision, steps)


def test_localization_alone_holds_the_chains() -> None:
    localization = 30.0
    posterior = oracles.quadratic_posterior(torch.zeros(64, dtype=torch.float64), nbeta=0.0, localization=localization)
    moments, steps = second_moments(posterior, oracles.noiseless(dimension=64), num_draws=100, thinning=3)
    check(moments, torch.tensor([localization], dtype=torch.float64), steps)


def test_masked_directions_follow_their_own_law() -> None:
    nbeta, localization, precision = 50.0, 0.5, PRODUCTS[1:] / STEP
    curvatures = ((precision - localization) / nbeta).repeat_interleave(2 * COPIES)
    mask = torch.arange(len(curvatures)) % 2 == 0
    posterior = oracles.quadratic_posterior(curvatures, nbeta=nbeta, localization=localization, masks={"w": mask})
    moments, steps = second_moments(posterior, oracles.noiseless(dimension=len(curvatures)), num_draws=150, thinning=2)
    assert posterior.dimension == int(mask.sum())
    check(moments, precision, steps)


def test_minibatch_noise_heats_as_predicted() -> None:
    r"""``Var P = (1 + ε s²/4) / (1 − ε P/4)``: 1.5 in the place of 1 + … at s below."""
    nbeta, localization, precision = 50.0, 0.5, torch.tensor([40.0, 100.0], dtype=torch.float64)
    batch_size, count = 4, 2**15  # an epoch is longer than the run: minibatches are all but independent
    curvatures = ((precision - localization) / nbeta).repeat_interleave(COPIES)
    z = torch.randn(count, len(curvatures), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = (z - z.mean(0)) / z.std(0)
    noise = math.sqrt(2.0 / STEP)  # ε s²/4 = ½
    data = oracles.in_memory(TensorDataset(z * noise / nbeta * math.sqrt(batch_size)))
    posterior = oracles.quadratic_posterior(curvatures, nbeta=nbeta, localization=localization)
    moments, steps = second_moments(posterior, data, num_draws=300, thinning=1, batch_size=batch_size)
    check(moments, precision, steps, noise)


@pytest.mark.parametrize("chain_method", ["vectorized", "sequential"])
@pytest.mark.parametrize(("batch_size", "temperature"), [(5, 1.0), (64, 1.0), (5, 2.0), (5, 0.0)])
def test_equals_the_naive_loop(chain_method: slt.sampling.ChainMethod, batch_size: int, temperature: float) -> None:
    g = torch.Generator().manual_seed(3)
    curvatures = torch.rand(6, generator=g, dtype=torch.float64)
    z = torch.randn(23, 6, generator=g, dtype=torch.float64)
    posterior = slt.LocalPosterior(
        loss=oracles.quadratic(curvatures),
        anchor={"w": torch.randn(6, generator=g, dtype=torch.float64)},
        nbeta=20.0,
        localization=3.0,
    )
    config = slt.SamplingConfig(
        num_chains=3, num_draws=7, num_burnin=4, thinning=3, batch_size=batch_size, seed=5, chain_method=chain_method
    )
    sampler = slt.SGLD(step_size=0.02, temperature=temperature)
    draws = list(slt.sample(posterior, sampler, oracles.in_memory(TensorDataset(z)), config))
    kept = [4 + 3 * k for k in range(1, 8)]
    assert [d.step for d in draws] == kept
    assert [d.index for d in draws] == list(range(7))
    for chain in range(3):
        order = oracles.batch_order(23, batch_size, 5, chain, 26)
        path = oracles.naive_sgld(
            lambda w, step: curvatures * w + z[order[step]].mean(0),  # noqa: B023
            posterior.anchor_row[0],
            oracles.chain_noise(5, chain, 25, 6),
            step_size=0.02,
            nbeta=20.0,
            localization=3.0,
            temperature=temperature,
        )
        for draw in draws:
            at, anchor = ({"w": path[s]} for s in (draw.step, 0))
            batch = (z[order[draw.step]],)
            torch.testing.assert_close(draw.loss[chain], posterior.loss(at, batch), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(draw.anchor_loss[chain], posterior.loss(anchor, batch), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(draws[-1].position[chain], path[-1], rtol=1e-10, atol=1e-10)


def test_draws_are_views_that_a_clone_keeps() -> None:
    posterior = oracles.quadratic_posterior(torch.ones(3, dtype=torch.float64), nbeta=1.0, localization=1.0)
    config = slt.SamplingConfig(num_chains=2, num_draws=3, num_burnin=0, batch_size=2)
    kept = oracles.positions(slt.sample(posterior, slt.SGLD(step_size=0.1), oracles.noiseless(dimension=3), config))
    assert len(kept.unique(dim=1)[0]) == 3


def test_noise_is_the_chains_own_and_standard_normal() -> None:
    like = torch.empty(4, 50_000, dtype=torch.float64)
    alone, together = ChainNoise([2], like=like[:1], seed=9), ChainNoise([0, 1, 2, 3], like=like, seed=9)
    for _ in range(2):
        rows = together.normals().clone()
        assert torch.equal(alone.normals()[0], rows[2])
    apart = (rows @ rows.T / rows.shape[1] - torch.eye(4)).abs()  # standard errors √2/√n and 1/√n
    assert float(apart.max()) < LIMIT * math.sqrt(2 / rows.shape[1])
    assert not torch.equal(rows, ChainNoise([0, 1, 2, 3], like=like, seed=10).normals())
