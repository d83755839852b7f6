"""Every sampler equals its naive loop, step by step: routes, masks, localization, minibatches, temperatures."""

from collections.abc import Callable
from functools import partial
from typing import Any

import oracles
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import lightning_slt as slt

Twin = Callable[[oracles.Hill, oracles.Dice, int, Any], Tensor]

adam = partial(oracles.naive_adam_sgld, v0=1.0)
CASES: dict[str, tuple[Callable[..., slt.Sampler], Twin]] = {
    "rmsprop": (partial(slt.RMSPropSGLD, step_size=5e-3, num_adapt=9), partial(adam, b1=0.0, b2=0.99)),
    "rmsprop_fast": (partial(slt.RMSPropSGLD, step_size=5e-3, num_adapt=8, decay=0.5), partial(adam, b1=0.0, b2=0.5)),
    "rmsprop_one_step": (partial(slt.RMSPropSGLD, step_size=5e-3, num_adapt=1), partial(adam, b1=0.0, b2=0.99)),
    "rmsprop_always": (
        partial(slt.RMSPropSGLD, step_size=5e-3, adaptation="always", damping=0.3),
        partial(adam, b1=0.0, b2=0.99),
    ),
    "rmsprop_from_zero": (
        partial(slt.RMSPropSGLD, step_size=5e-3, adaptation="always", second_moment="zero"),
        partial(oracles.naive_adam_sgld, b1=0.0, b2=0.99, v0=0.0),
    ),
    "rmsprop_frozen_from_zero": (
        partial(slt.RMSPropSGLD, step_size=5e-3, num_adapt=6, second_moment="zero"),
        partial(oracles.naive_adam_sgld, b1=0.0, b2=0.99, v0=0.0),
    ),
    "adam": (partial(slt.AdamSGLD, step_size=5e-3, num_adapt=9), partial(adam, b1=0.9, b2=0.99)),
    "adam_always": (
        partial(slt.AdamSGLD, step_size=5e-3, adaptation="always", betas=(0.5, 0.9)),
        partial(adam, b1=0.5, b2=0.9),
    ),
    "sghmc": (partial(slt.SGHMC, step_size=0.02, friction=0.2), oracles.naive_sghmc),
    "sgnht": (partial(slt.SGNHT, step_size=0.05), oracles.naive_sgnht),
    "underdamped": (partial(slt.UnderdampedLangevin, step_size=0.1, friction=2.0), oracles.naive_underdamped),
    "mala": (partial(slt.MALA, step_size=0.08), oracles.naive_mala),
    "hmc": (partial(slt.HMC, step_size=0.3, num_leapfrog=3), oracles.naive_hmc),
}
BURNIN, DRAWS = 3, 15
ROUTES: dict[str, dict[str, Any]] = {
    "vectorized": {"chain_method": "vectorized"},
    "chunked": {"chain_method": "vectorized", "chunk_size": 2},
    "sequential": {"chain_method": "sequential"},
}
CURVATURES = torch.linspace(0.1, 1.5, 7, dtype=torch.float64)
DATA = torch.randn(23, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
ANCHOR = torch.linspace(-0.5, 0.7, 7, dtype=torch.float64)


def loss(h: Tensor, w: Tensor, z: Tensor) -> Tensor:
    return (0.5 * h * w**2 + 0.1 * w**4).sum() + (z @ w).mean()


def gradient(h: Tensor, w: Tensor, z: Tensor) -> Tensor:
    return h * w + 0.4 * w**3 + z.mean(0)


def compare(name: str, *, batch_size: int, temperature: float, masked: bool, route: dict[str, Any]) -> oracles.Watched:
    make, twin = CASES[name]
    sampler = make(temperature=temperature)
    free = torch.arange(7) % 3 != 1 if masked else torch.ones(7, dtype=torch.bool)
    posterior = slt.LocalPosterior(
        loss=lambda weights, batch: loss(CURVATURES, weights["w"], batch[0]),
        anchor={"w": ANCHOR},
        nbeta=20.0,
        localization=3.0,
        masks={"w": free} if masked else {},
    )
    config = slt.SamplingConfig(
        num_chains=3, num_draws=DRAWS, num_burnin=BURNIN, batch_size=batch_size, seed=5, **route
    )
    watched = oracles.Watched(step_size=sampler.step_size, inner=sampler)
    found = oracles.positions(slt.sample(posterior, watched, oracles.in_memory(TensorDataset(DATA)), config))
    steps, dimension = sampler.adaptation_steps + BURNIN + DRAWS, int(free.sum())
    h, z = CURVATURES[free], DATA[:, free]
    for chain in range(3):
        order = oracles.batch_order(23, 23 if sampler.full_batch else batch_size, 5, chain, steps + 1)
        hill = oracles.Hill(
            loss=lambda w, step: loss(h, w, z[order[step]]),  # noqa: B023
            gradient=lambda w, step: gradient(h, w, z[order[step]]),  # noqa: B023
            anchor=ANCHOR[free],
            nbeta=20.0,
            localization=3.0,
        )
        path = twin(hill, oracles.Dice(5, chain, dimension), steps, sampler)
        torch.testing.assert_close(found[chain], path[-DRAWS:], rtol=1e-10, atol=1e-10)
        if sampler.full_batch and len(watched.states) == 1:
            moved = int((path[1:] != path[:-1]).any(1).sum())
            assert int(watched.states[0]["accepted"][chain]) == moved
    return watched


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("batch_size", "temperature"), [(5, 1.0), (64, 2.0)])
def test_equals_the_naive_loop(name: str, batch_size: int, temperature: float) -> None:
    compare(name, batch_size=batch_size, temperature=temperature, masked=False, route=ROUTES["vectorized"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("route", ROUTES)
def test_masked_equals_the_naive_loop_on_every_route(name: str, route: str) -> None:
    compare(name, batch_size=5, temperature=1.0, masked=True, route=ROUTES[route])


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("mala", "hmc")])
def test_without_noise_equals_the_naive_loop(name: str) -> None:
    compare(name, batch_size=5, temperature=0.0, masked=False, route=ROUTES["sequential"])


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_the_comparison_sees_acceptances_and_rejections(name: str) -> None:
    watched = compare(name, batch_size=5, temperature=1.0, masked=False, route=ROUTES["vectorized"])
    accepted = watched.states[0]["accepted"].sum()
    assert 5 < int(accepted) < 3 * (BURNIN + DRAWS) - 5


def test_a_frozen_preconditioner_drops_what_it_no_longer_needs() -> None:
    watched = compare("rmsprop", batch_size=5, temperature=1.0, masked=False, route=ROUTES["vectorized"])
    assert set(watched.states[0]) == {"position", "steps", "root"}
