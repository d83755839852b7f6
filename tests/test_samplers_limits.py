"""Samplers at their limits: no noise, no force, one sampler as another's special case, the edge of stability, walls."""

import math
import re
from dataclasses import replace
from typing import Any

import oracles
import pytest
import torch
import zoo
from torch import Tensor
from torch.utils.data import TensorDataset

import lightning_slt as slt

DOUBLE = torch.float64
NOISY = [name for name in zoo.SAMPLERS if name not in ("mala", "hmc")]


def walk(sampler: slt.Sampler, posterior: slt.LocalPosterior, *, draws: int, chains: int = 2, **more: Any) -> Tensor:
    data = oracles.noiseless(dimension=posterior.dimension)
    config = slt.SamplingConfig(num_chains=chains, num_draws=draws, num_burnin=0, batch_size=2, seed=4, **more)
    return oracles.positions(slt.sample(posterior, sampler, data, config))


def valley(curvatures: Tensor, *, nbeta: float, localization: float) -> slt.LocalPosterior:
    """A quadratic around zero, started from one."""
    anchor = {"w": torch.ones(len(curvatures), dtype=DOUBLE)}
    return slt.LocalPosterior(loss=oracles.quadratic(curvatures), anchor=anchor, nbeta=nbeta, localization=localization)


@pytest.mark.parametrize("name", NOISY)
def test_without_noise_and_force_nothing_moves(name: str) -> None:
    flat = valley(torch.zeros(3, dtype=DOUBLE), nbeta=0.0, localization=2.0)
    path = walk(zoo.SAMPLERS[name](step_size=0.1, temperature=0.0), flat, draws=10)
    assert torch.equal(path, torch.ones_like(path))


@pytest.mark.parametrize("name", zoo.SAMPLERS)
def test_without_force_it_is_brownian(name: str) -> None:
    """Zero gradient, no localization: increments have no preferred direction, and nothing is rejected."""
    flat = valley(torch.zeros(2000, dtype=DOUBLE), nbeta=5.0, localization=0.0)
    sampler = oracles.Watched(step_size=0.01, inner=zoo.SAMPLERS[name](step_size=0.01))
    path = walk(sampler, flat, draws=5)
    moved = (path - 1).mean(2) / (path.std(2) / math.sqrt(2000))
    assert float(moved.abs().max()) < 4.5
    if "accepted" in sampler.states[0]:
        assert sampler.states[0]["accepted"].tolist() == [5, 5]


@pytest.mark.parametrize("name", NOISY)
def test_without_noise_it_ends_in_the_minimum(name: str) -> None:
    h, nbeta, localization = torch.tensor([0.5, 2.0], dtype=DOUBLE), 10.0, 5.0
    steep = name in ("rmsprop", "adam")
    sampler = zoo.SAMPLERS[name](step_size=0.01 if steep else 0.05, temperature=0.0)
    end = walk(sampler, valley(h, nbeta=nbeta, localization=localization), draws=1500)[:, -1]
    torch.testing.assert_close(end, (localization / (nbeta * h + localization)).expand(2, 2), rtol=1e-8, atol=1e-8)


def test_sgld_without_noise_is_gradient_flow() -> None:
    h, eps = torch.tensor([0.5, 2.0], dtype=DOUBLE), 1e-4
    for sampler in (slt.SGLD(step_size=eps, temperature=0.0), slt.SGHMC(step_size=eps, friction=1.0, temperature=0.0)):
        end = walk(sampler, valley(h, nbeta=10.0, localization=0.0), draws=1000)[0, -1]
        torch.testing.assert_close(end, torch.exp(-1000 * eps / 2 * 10 * h), rtol=1e-2, atol=0)


class TestSpecialCases:
    posterior = valley(torch.linspace(0.1, 3, 5, dtype=DOUBLE), nbeta=10.0, localization=2.0)

    def same(self, one: slt.Sampler, other: slt.Sampler) -> None:
        paths = [walk(sampler, self.posterior, draws=40) for sampler in (one, other)]
        torch.testing.assert_close(paths[0], paths[1], rtol=1e-10, atol=1e-10)

    def test_hmc_of_one_leapfrog_step_is_mala(self) -> None:
        self.same(slt.HMC(step_size=0.3, num_leapfrog=1), slt.MALA(step_size=0.09))

    def test_adam_without_momentum_is_rmsprop(self) -> None:
        more: dict[str, Any] = {"step_size": 0.01, "num_adapt": 10}
        self.same(slt.AdamSGLD(betas=(0.0, 0.99), **more), slt.RMSPropSGLD(**more))

    def test_rmsprop_of_huge_damping_is_sgld(self) -> None:
        adapted = slt.RMSPropSGLD(step_size=0.01 * 1e14, damping=1e14, adaptation="always")
        self.same(adapted, slt.SGLD(step_size=0.01))

    def test_sghmc_that_forgets_its_momentum_is_sgld(self) -> None:
        eps = 0.02
        path = walk(slt.SGHMC(step_size=eps, friction=1.0), self.posterior, draws=40)
        h = torch.linspace(0.1, 3, 5, dtype=DOUBLE)
        for chain in range(2):
            noise = oracles.chain_noise(4, chain, 41, 5)[1:]  # the first is the momentum's
            more: dict[str, Any] = {"step_size": eps, "nbeta": 10.0, "localization": 2.0}
            naive = oracles.naive_sgld(lambda w, step: h * w, self.posterior.anchor_row[0], noise, **more)
            torch.testing.assert_close(path[chain], naive[1:], rtol=1e-10, atol=1e-10)

    def test_sgnht_starts_as_sghmc(self) -> None:
        """With a small step size the thermostat hardly moves: 10 steps of ε = 1e-9."""
        paths = [
            walk(sampler, self.posterior, draws=10) - 1
            for sampler in (slt.SGNHT(step_size=1e-9), slt.SGHMC(step_size=1e-9))
        ]
        torch.testing.assert_close(paths[0], paths[1], rtol=1e-5, atol=1e-12)


class TestStability:
    @pytest.mark.parametrize(
        "make",
        [
            lambda eps: slt.SGLD(step_size=eps, temperature=0.0),
            lambda eps: slt.SGHMC(step_size=eps, temperature=0.0),
            lambda eps: slt.SGHMC(step_size=eps, friction=0.9, temperature=0.0),
            lambda h: slt.UnderdampedLangevin(step_size=math.sqrt(h), friction=1.0, temperature=0.0),
            lambda h: slt.UnderdampedLangevin(step_size=math.sqrt(h), friction=9.0, temperature=0.0),
        ],
    )
    def test_four_is_the_edge(self, make: Any) -> None:
        precision, unit = 7.0, make(1.0).stability(7.0)
        ends = []
        for number in (3.9, 4.1):
            sampler = make(number / unit)
            assert sampler.stability(precision) == pytest.approx(number)
            path = walk(sampler, valley(torch.tensor([0.7], dtype=DOUBLE), nbeta=10.0, localization=0.0), draws=2000)
            ends.append(float(path[0, -1].abs()))
        assert ends[0] < 1e-3
        assert not ends[1] < 1e3

    @pytest.mark.parametrize(("number", "holds"), [(3.6, True), (5.0, False)])
    def test_four_is_the_edge_of_the_thermostat(self, number: float, holds: bool) -> None:
        h = torch.full((512,), 0.7, dtype=DOUBLE)
        sampler = slt.SGNHT(step_size=number / slt.SGNHT(step_size=1.0).stability(7.0))
        posterior = oracles.quadratic_posterior(h, nbeta=10.0, localization=0.0)
        end = walk(sampler, posterior, draws=1000)[:, -1]
        assert bool((7 * end.square().mean() < 1.5) == holds)

    def test_exact_samplers_count_like_their_proposals(self) -> None:
        assert slt.MALA(step_size=0.1).stability(7.0) == slt.SGLD(step_size=0.1).stability(7.0)
        assert slt.HMC(step_size=0.1).stability(7.0) == pytest.approx(0.07)

    @pytest.mark.parametrize("kind", [slt.RMSPropSGLD, slt.AdamSGLD])
    def test_preconditioned_samplers_cannot_tell(self, kind: Any) -> None:
        assert math.isnan(kind(step_size=0.1).stability(7.0))


@pytest.mark.parametrize("outside", [math.inf, math.nan, -math.inf])
@pytest.mark.parametrize("name", ["mala", "hmc"])
@pytest.mark.parametrize("chain_method", ["vectorized", "sequential"])
def test_proposals_into_what_is_not_finite_are_rejected(name: str, outside: float, chain_method: Any) -> None:
    def walled(weights: dict[str, Tensor], batch: Any) -> Tensor:
        w = weights["w"]
        return torch.where((w.abs() < 0.5).all(), 0.5 * w.square().sum(), outside)

    posterior = slt.LocalPosterior(loss=walled, anchor={"w": torch.zeros(2, dtype=DOUBLE)}, nbeta=1.0, localization=0.0)
    sampler = oracles.Watched(step_size=0.3, inner=zoo.SAMPLERS[name](step_size=0.3))
    path = walk(sampler, posterior, draws=100, chains=4, chain_method=chain_method)
    assert float(path.abs().max()) < 0.5
    assert all(5 < count < 95 for count in sampler.states[0]["accepted"].tolist())


def test_a_dead_chain_leaves_the_others_alone() -> None:
    """One chain's minibatch turns it into NaN; the others keep their bits."""
    z = torch.zeros(64, 3, dtype=DOUBLE)
    z[oracles.batch_order(64, 2, 4, 0, 4)[3]] = math.nan
    for name in NOISY:
        posterior, paths = oracles.quadratic_posterior(torch.ones(3, dtype=DOUBLE), nbeta=5.0, localization=1.0), []
        for data in (z, z.nan_to_num()):
            config = slt.SamplingConfig(num_chains=4, num_draws=6, num_burnin=0, batch_size=2, seed=4)
            sampler = zoo.SAMPLERS[name](step_size=0.01)
            draws = slt.sample(posterior, sampler, oracles.in_memory(TensorDataset(data)), config)
            paths.append(oracles.positions(draws))
        alive = paths[0].isfinite().all(-1).all(-1)
        assert 0 < int(alive.sum()) < 4
        assert torch.equal(paths[0][alive], paths[1][alive])


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_exact_samplers_see_all_data_whatever_the_batch_size(name: str) -> None:
    posterior, data = zoo.TARGETS["quadratic"]()
    paths = []
    for batch_size in (3, 10**6):
        config = slt.SamplingConfig(num_chains=2, num_draws=5, num_burnin=0, batch_size=batch_size)
        paths.append(oracles.positions(slt.sample(posterior, zoo.SAMPLERS[name](step_size=0.1), data, config)))
    assert torch.equal(*paths)


BAD: list[tuple[Any, dict[str, Any], str]] = [
    *(
        (kind, {"step_size": -1.0}, "step_size must be a finite number, zero or more, got -1.0")
        for kind in (slt.SGHMC, slt.HMC)
    ),
    (slt.RMSPropSGLD, {"decay": 1.0}, "decay must be at least 0 and below 1, got 1.0; write e.g. decay=0.99"),
    (slt.RMSPropSGLD, {"damping": 0.0}, "damping must be a finite number above 0, got 0.0; write e.g. damping=0.1"),
    (slt.RMSPropSGLD, {"adaptation": "never"}, "adaptation must be 'burnin' or 'always', got 'never'"),
    (slt.RMSPropSGLD, {"num_adapt": 0}, "num_adapt must be a whole number of at least 1, got 0"),
    (slt.RMSPropSGLD, {"num_adapt": 1.5}, "num_adapt must be a whole number of at least 1, got 1.5"),
    (slt.RMSPropSGLD, {"second_moment": "two"}, "second_moment must be 'one' or 'zero', got 'two'"),
    (slt.AdamSGLD, {"betas": 0.9}, "betas must be two numbers, each at least 0 and below 1, got 0.9"),
    (slt.AdamSGLD, {"betas": (0.9, 1.0)}, "betas must be two numbers"),
    (slt.AdamSGLD, {"damping": -1}, "AdamSGLD.damping must be a finite number above 0, got -1"),
    (slt.AdamSGLD, {"num_adapt": True}, "num_adapt must be a whole number of at least 1, got True"),
    (slt.SGHMC, {"friction": 0.0}, "friction must be above 0 and at most 1, got 0.0; write e.g. friction=0.1"),
    (slt.SGHMC, {"friction": 1.5}, "friction must be above 0 and at most 1, got 1.5"),
    (slt.SGHMC, {"friction": "high"}, "friction must be above 0 and at most 1, got 'high'"),
    (slt.SGNHT, {"diffusion": 0.5}, "diffusion must be above 0, below 0.5, got 0.5; write e.g. diffusion=0.1"),
    (slt.UnderdampedLangevin, {"friction": 0}, "friction must be a finite number above 0, got 0"),
    (slt.MALA, {"temperature": 0.0}, "MALA.temperature must be above 0, as there is no density at 0, got 0.0"),
    (slt.HMC, {"temperature": 0.0}, "HMC.temperature must be above 0"),
    (slt.HMC, {"num_leapfrog": 0}, "num_leapfrog must be a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize(("kind", "arguments", "words"), BAD)
def test_bad_arguments_are_named(kind: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        kind(**{"step_size": 1e-3} | arguments)


def test_settings_are_frozen_and_can_be_replaced() -> None:
    for name, make in zoo.SAMPLERS.items():
        sampler = make(step_size=0.1)
        assert replace(sampler, step_size=0.2).step_size == 0.2, name
        with pytest.raises(AttributeError):
            sampler.step_size = 0.3
