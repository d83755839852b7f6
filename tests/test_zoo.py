"""Contracts that every sampler and every estimator keeps, over the tables of ``zoo``."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import oracles
import pytest
import torch
import zoo
from torch import Tensor

import lightning_slt as slt
from lightning_slt.estimators import Accumulator, Run

targets = pytest.mark.parametrize("target", zoo.TARGETS)
samplers = pytest.mark.parametrize("sampler", zoo.SAMPLERS)
estimators = pytest.mark.parametrize("estimator", zoo.ESTIMATORS)


def walk(target: str, sampler: slt.Sampler, *, chains: int = 3, **more: Any) -> Tensor:
    """Positions ``[chain, draw, coordinate]`` of a short run on minibatches."""
    posterior, data = zoo.TARGETS[target]()
    config = slt.SamplingConfig(num_chains=chains, num_draws=6, num_burnin=0, batch_size=5, seed=2, **more)
    return oracles.positions(slt.sample(posterior, sampler, data, config))


@targets
@samplers
class TestSampler:
    def test_shapes_and_types_are_kept(self, target: str, sampler: str) -> None:
        posterior, data = zoo.TARGETS[target]()
        config = slt.SamplingConfig(num_chains=3, num_draws=2, num_burnin=1, thinning=2, batch_size=5)
        made = zoo.SAMPLERS[sampler](step_size=1e-3)
        draws, first = list(slt.sample(posterior, made, data, config)), made.adaptation_steps
        assert [(d.index, d.step, d.chains) for d in draws] == [(0, first + 3, (0, 1, 2)), (1, first + 5, (0, 1, 2))]
        for draw in draws:
            assert draw.position.shape == (3, posterior.dimension)
            assert draw.loss.shape == draw.anchor_loss.shape == (3,)
            assert draw.position.dtype == draw.loss.dtype == posterior.anchor_row.dtype
            assert not any(t.requires_grad for t in (draw.position, draw.loss, draw.anchor_loss))

    def test_step_size_zero_stands_still_exactly(self, target: str, sampler: str) -> None:
        still = walk(target, zoo.SAMPLERS[sampler](step_size=0.0))
        assert torch.equal(still, zoo.TARGETS[target]().posterior.anchor_row.expand_as(still))

    def test_every_chain_moves_on_its_own(self, target: str, sampler: str) -> None:
        moved = walk(target, zoo.SAMPLERS[sampler](step_size=1e-3))
        rows = moved.flatten(0, 1)
        assert len(rows.unique(dim=0)) == len(rows)
        assert bool((moved != zoo.TARGETS[target]().posterior.anchor_row).any(0).any(0).all())

    def test_without_noise_chains_on_all_data_are_one(self, target: str, sampler: str) -> None:
        posterior, data = zoo.TARGETS[target]()
        config = slt.SamplingConfig(num_chains=3, num_draws=6, num_burnin=0, batch_size=len(data))
        if zoo.SAMPLERS[sampler](step_size=1e-3).full_batch:
            pytest.skip("an accept-or-reject step has no limit at temperature 0; the constructor refuses it")
        cold = zoo.SAMPLERS[sampler](step_size=1e-3, temperature=0.0)
        path = oracles.positions(slt.sample(posterior, cold, data, config))
        assert torch.equal(path[0], path[2])
        potential = [posterior.potential(path[:1, t], loss(posterior, data, path[0, t])) for t in range(6)]
        assert all(float(b) < float(a) for a, b in itertools.pairwise(potential))

    def test_chain_does_not_depend_on_its_company(self, target: str, sampler: str) -> None:
        made = zoo.SAMPLERS[sampler](step_size=1e-3)
        five = walk(target, made, chains=5)
        for chains in (2, 3):
            assert torch.equal(walk(target, made, chains=chains), five[:chains])
        posterior, data = zoo.TARGETS[target]()
        config = slt.SamplingConfig(num_chains=5, num_draws=6, num_burnin=0, batch_size=5, seed=2)
        some = oracles.positions(slt.sample(posterior, made, data, config, chains=[1, 4]))
        assert torch.equal(some, five[[1, 4]])

    def test_one_seed_gives_the_same_bits_twice_and_another_gives_others(self, target: str, sampler: str) -> None:
        made = zoo.SAMPLERS[sampler](step_size=1e-3)
        assert torch.equal(walk(target, made), walk(target, made))
        posterior, data = zoo.TARGETS[target]()
        config = slt.SamplingConfig(num_chains=3, num_draws=6, num_burnin=0, batch_size=5, seed=3)
        assert not torch.equal(oracles.positions(slt.sample(posterior, made, data, config)), walk(target, made))

    def test_burnin_and_thinning_only_choose_among_positions(self, target: str, sampler: str) -> None:
        posterior, data = zoo.TARGETS[target]()
        made = zoo.SAMPLERS[sampler](step_size=1e-3)
        config = slt.SamplingConfig(num_chains=3, num_draws=2, num_burnin=2, thinning=2, batch_size=5, seed=2)
        assert torch.equal(oracles.positions(slt.sample(posterior, made, data, config)), walk(target, made)[:, [3, 5]])


def loss(posterior: slt.LocalPosterior, data: slt.SamplingData, row: Tensor) -> Tensor:
    """Mean loss over all data at one position ``[1]``."""
    weights = {}
    for leaf in posterior.leaves:
        values = posterior.anchor[leaf.name].detach().clone().flatten()
        values[slice(None) if leaf.moving is None else leaf.moving] = row[leaf.start : leaf.stop]
        weights[leaf.name] = values.view(leaf.shape)
    return posterior.loss(weights, data.batch(torch.arange(len(data)))).mean().detach()[None]


@samplers
def test_masked_elements_never_move(sampler: str) -> None:
    posterior, data = zoo.perceptron(masked=True)
    seen: list[dict[str, Tensor]] = []

    def spy(weights: dict[str, Tensor], batch: Any) -> Tensor:
        seen.append({name: weights[name].detach().clone() for name in posterior.masks})
        return posterior.loss(weights, batch)

    watched = slt.LocalPosterior(loss=spy, anchor=posterior.anchor, nbeta=20.0, localization=5.0, masks=posterior.masks)
    config = slt.SamplingConfig(num_chains=2, num_draws=5, num_burnin=0, batch_size=5, chain_method="sequential")
    for _ in slt.sample(watched, zoo.SAMPLERS[sampler](step_size=1e-2), data, config):
        pass
    for name, mask in posterior.masks.items():
        stacked, anchor = torch.stack([weights[name] for weights in seen]), posterior.anchor[name]
        assert bool((stacked[:, ~mask] == anchor[~mask]).all())
        assert not bool((stacked[:, mask] == anchor[mask]).all())


def synthetic(chains: int = 4, draws: int = 12, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    anchor = 2 + torch.rand(chains, draws, generator=g, dtype=torch.float64)
    return anchor + 0.1 * torch.randn(chains, draws, generator=g, dtype=torch.float64) + 0.05, anchor


def feed(accumulator: Accumulator, losses: tuple[Tensor, Tensor], chains: Sequence[int], order: Sequence[int]) -> None:
    for index in order:
        rows = list(chains)
        accumulator.update(
            slt.Draw(
                chains=tuple(chains),
                index=index,
                step=index + 1,
                loss=losses[0][rows, index],
                anchor_loss=losses[1][rows, index],
                position=torch.zeros(len(rows), 3),
            )
        )


def start(estimator: str, losses: tuple[Tensor, Tensor], **more: Any) -> Accumulator:
    chains, draws = losses[0].shape
    run = Run(num_chains=chains, num_draws=draws, nbeta=10.0, localization=1.0, dimension=3, **more)
    return zoo.ESTIMATORS[estimator]().start(run)


def same(a: slt.Estimate, b: slt.Estimate) -> bool:
    return (a.mean, a.stderr, str(a.health.values)) == (b.mean, b.stderr, str(b.health.values)) and torch.equal(
        a.per_chain, b.per_chain
    )


@estimators
@pytest.mark.parametrize("share_batches", [False, True])
class TestEstimator:
    def test_streaming_chunks_and_order_are_irrelevant(self, estimator: str, share_batches: bool) -> None:
        losses = synthetic()
        whole = start(estimator, losses, share_batches=share_batches)
        feed(whole, losses, range(4), range(12))
        parts = start(estimator, losses, share_batches=share_batches)
        for chains in ((3,), (2, 0), (1,)):
            feed(parts, losses, chains, random.Random(0).sample(range(12), 12))
        assert same(whole.compute(), parts.compute())

    def test_states_split_over_processes_add_up_to_the_whole(self, estimator: str, share_batches: bool) -> None:
        losses = synthetic()
        whole, first, second = (start(estimator, losses, share_batches=share_batches) for _ in range(3))
        feed(whole, losses, range(4), range(12))
        feed(first, losses, (0, 2), range(12))
        feed(second, losses, (1, 3), range(12))
        for a, b in zip(first.states, second.states, strict=True):
            for name in a._defaults:
                setattr(a, name, getattr(a, name) + getattr(b, name))
        assert same(whole.compute(), first.compute())

    def test_naming_the_chains_otherwise_changes_nothing(self, estimator: str, share_batches: bool) -> None:
        losses, turn = synthetic(), [2, 0, 3, 1]
        plain, turned = (start(estimator, losses, share_batches=share_batches) for _ in range(2))
        feed(plain, losses, range(4), range(12))
        feed(turned, (losses[0][turn], losses[1][turn]), range(4), range(12))
        a, b = plain.compute(), turned.compute()
        assert torch.equal(a.per_chain[turn], b.per_chain)
        assert b.mean == pytest.approx(a.mean, rel=1e-12)
        assert b.stderr == pytest.approx(a.stderr, rel=1e-9)

    def test_computing_twice_gives_the_same(self, estimator: str, share_batches: bool) -> None:
        losses = synthetic()
        accumulator = start(estimator, losses, share_batches=share_batches)
        feed(accumulator, losses, range(4), range(12))
        assert same(accumulator.compute(), accumulator.compute())

    def test_an_offset_common_to_draw_and_anchor_cancels(self, estimator: str, share_batches: bool) -> None:
        losses = synthetic()
        shifted = (losses[0] + 512.0, losses[1] + 512.0)
        plain, moved = (start(estimator, losses, share_batches=share_batches) for _ in range(2))
        feed(plain, losses, range(4), range(12))
        feed(moved, shifted, range(4), range(12))
        assert moved.compute().mean == pytest.approx(plain.compute().mean, abs=1e-10)


def test_llc_equals_the_naive_one() -> None:
    losses = synthetic()
    accumulator = start("llc", losses)
    feed(accumulator, losses, range(4), range(12))
    found = accumulator.compute()
    naive = [oracles.naive_llc(list(losses[0][c]), list(losses[1][c]), 10.0) for c in range(4)]
    assert found.per_chain.tolist() == pytest.approx(naive, rel=1e-12)
    assert found.mean == pytest.approx(sum(naive) / 4, rel=1e-12)
    spread = torch.tensor(naive, dtype=torch.float64).std() / 2
    assert found.stderr == pytest.approx(float(spread), rel=1e-12)
    assert torch.equal(found.traces["loss"], losses[0] - losses[1])
