"""Recorded passes: the same bits as the passes themselves, and none where a recording would be wrong."""

from collections.abc import Sequence
from typing import Any

import oracles
import pytest
import test_reproducibility
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt import sampling
from lightning_slt.batches import ChainBatch, split_batch
from lightning_slt.functional import ModuleLoss
from lightning_slt.isolation import isolated
from lightning_slt.passes import CHECKS, VectorizedPasses
from lightning_slt.tracing import record
from lightning_slt.types import Product

VECTORIZED = [name for name, kind in zoo.MODELS.items() if kind.vectorizes]


@pytest.mark.parametrize("name", VECTORIZED)
@pytest.mark.parametrize("shared", [False, True])
def test_bits_of_the_passes_themselves(name: str, shared: bool) -> None:
    module, data, kind = zoo.model(name, torch.float32)
    g = torch.Generator().manual_seed(0)
    with isolated(module, seed=0):
        loss = ModuleLoss(module, kind.loss)
        posterior = slt.LocalPosterior(loss=loss, anchor=dict(loss.weights), nbeta=1.0, localization=1.0)
        position = posterior.anchor_row.repeat(3, 1)
        recorded, plain = (VectorizedPasses(posterior, position, record=r) for r in (True, False))
        samples = oracles.in_memory(data)
        for _ in range(CHECKS + 2):  # the last ones are replayed alone
            position += 0.1 * torch.randn(position.shape, generator=g)
            batch = samples.chain_batch(torch.randint(len(data), (16,) if shared else (3, 16), generator=g))
            (ours, ours_rows), (theirs, their_rows) = (p.loss_and_gradient(batch) for p in (recorded, plain))
            assert torch.equal(ours, theirs)
            assert torch.equal(ours_rows.rows, their_rows.rows)
            assert torch.equal(recorded.loss(batch), ours)


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "tied", "wide"])
def test_recorded_chains_do_not_depend_on_their_company(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = test_reproducibility.run(name, torch.float32, chain_method="vectorized")
    monkeypatch.setattr(sampling, "RECORDED_FROM", 0)
    whole = test_reproducibility.run(name, torch.float32, chain_method="vectorized")
    assert torch.equal(whole, plain)
    for chunk_size in (1, 2, 3):
        some = test_reproducibility.run(name, torch.float32, chain_method="vectorized", chunk_size=chunk_size)
        assert torch.equal(some, whole)


class Wide(nn.Module):
    """A matrix large enough to be handed on as its factors, and a product of two matrices of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(210, 101)
        self.left, self.right = (nn.Parameter(0.1 * torch.randn(150, 150)) for _ in range(2))
        self.last = nn.Linear(101, 150)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh()) @ F.linear(self.left, self.right)


def wide_walk(*, chunk_size: int | None = None, num_chains: int = 5) -> Tensor:
    """Positions after a few steps, ``[chain, draw, coordinate]``."""
    torch.manual_seed(0)
    net = Wide().double()  # in which a factor that moved too early shows
    inputs = torch.randn(40, 210, dtype=torch.float64)
    data = oracles.in_memory(TensorDataset(inputs, torch.arange(40) % 150))
    with isolated(net, seed=0):
        loss = ModuleLoss(net, slt.losses.classification)
        posterior = slt.LocalPosterior(loss=loss, anchor=dict(loss.weights), nbeta=30.0, localization=1.0)
        config = slt.SamplingConfig(
            num_chains=num_chains, num_draws=4, num_burnin=2, batch_size=16, chunk_size=chunk_size
        )
        return oracles.positions(slt.sample(posterior, slt.SGLD(step_size=1e-4), data, config))


def test_factors_of_large_gradients_give_the_same_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = wide_walk()
    monkeypatch.setattr(sampling, "RECORDED_FROM", 0)
    whole = wide_walk()
    assert not torch.equal(whole, plain)  # factors round otherwise, so they were used
    torch.testing.assert_close(whole, plain, rtol=1e-10, atol=1e-10)
    for chunk_size in (1, 2, 3):
        assert torch.equal(wide_walk(chunk_size=chunk_size), whole)
    assert torch.equal(wide_walk(num_chains=2), whole[:2])


def long_run(loss: Any, count: int = 300) -> list[slt.Draw]:
    posterior = slt.LocalPosterior(loss=loss, anchor={"w": torch.zeros(3)}, nbeta=10.0, localization=1.0)
    config = slt.SamplingConfig(num_chains=2, num_draws=count, num_burnin=0, batch_size=4)
    data = oracles.in_memory(TensorDataset(torch.arange(36.0).view(12, 3).sin()))
    return list(slt.sample(posterior, slt.SGLD(step_size=1e-2), data, config))


def test_a_long_run_calls_the_loss_a_few_times() -> None:
    calls = 0

    def loss(weights: dict[str, Tensor], batch: Sequence[Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return (weights["w"] - batch[0]).square().sum(-1)

    assert len(long_run(loss)) == 300
    assert 0 < calls <= 3 * (1 + CHECKS)  # loss and gradient at the draws, loss at the anchor, loss at the last draw


def test_a_loss_that_counts_its_calls_is_not_recorded() -> None:
    calls = 0

    def loss(weights: dict[str, Tensor], batch: Sequence[Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return calls * (weights["w"] - batch[0]).square().sum(-1)

    long_run(loss)
    assert calls > 300


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x + torch.rand_like(x)],
        lambda x: [F.dropout(x, 0.5, training=True)],
        lambda x: [x.add_(1.0)],
        lambda x: [x[:1].mul_(2.0)],
        lambda x: [x.chunk(2)[0].mul_(2.0) + 1],
        lambda x: [x.unbind()[1].zero_() + 1],
        lambda x: torch._foreach_mul_([x], 2.0) or [x + 1],
        lambda x: [x * 2 if bool(x.sum() > 0) else x],
        lambda x: [x * x.sum().item()],
    ],
    ids=["random", "dropout", "writes", "to-a-view", "to-a-chunk", "to-a-row", "by-list", "branches", "item"],
)
def test_what_is_not_recorded(function: Any) -> None:
    assert record(function, [torch.ones(4, 2)]) is None


def test_a_factor_that_looks_at_part_of_a_moved_weight_is_not_handed_on() -> None:
    """As of a fused projection that is split: its product would be made after the sampler has moved it."""

    def run(fused: Tensor, other: Tensor, x: Tensor) -> list[Tensor]:
        fused, other = (w.detach().requires_grad_() for w in (fused, other))
        loss = torch.vmap(lambda a, b, c: (c @ F.linear(a, b)).square().sum())(fused.chunk(2, 1)[0], other, x)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), [fused, other])]

    inputs = [torch.randn(2, *shape, dtype=torch.float64) for shape in ((300, 150), (150, 150), (4, 150))]
    replay = record(run, inputs, moved=2)
    assert replay is not None
    expected, found = run(*inputs)[2], replay(*inputs)[2]
    inputs[0].mul_(3.0)
    assert torch.equal(found.dense if isinstance(found, Product) else found, expected)


def test_a_buffer_that_the_loss_moves_is_not_recorded() -> None:
    norm = nn.BatchNorm1d(2).train()
    assert record(lambda x: [norm(x)], [torch.randn(4, 2)]) is None
    assert record(lambda x: [norm.eval()(x)], [torch.randn(4, 2)]) is not None


def test_writing_to_what_it_made_itself_is_recorded() -> None:
    x = torch.randn(4, 2)
    replay = record(lambda x: [(x + 1).relu_().mul_(3.0)], [x])
    assert replay is not None
    (found,) = replay(-2 * x)
    assert torch.equal(found, 3 * (1 - 2 * x).relu())


@pytest.mark.parametrize("classes", [2, 3, 10, 15, 16, 100])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_softmax_over_few_classes(classes: int, shape: tuple[int, ...]) -> None:
    def run(x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        output = x.log_softmax(-1)
        return [output, *torch.autograd.grad(output.square().sum(), x)]

    replay = record(run, [torch.zeros(*shape, classes)])
    assert replay is not None
    x = 5 * torch.randn(*shape, classes, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(replay(x), run(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert found.is_contiguous()


def test_batches_that_differ_in_more_than_their_tensors_are_recorded_apart() -> None:
    def loss(weights: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        return batch["scale"] * (weights["w"] - batch["x"]).square().sum(-1)

    def batch(scale: float, size: int) -> ChainBatch:
        x = torch.ones(2, size, 3)
        return ChainBatch(*split_batch({"x": x, "scale": scale}), False, torch.zeros(2, size, dtype=torch.long))

    posterior = slt.LocalPosterior(loss=loss, anchor={"w": torch.zeros(3)}, nbeta=1.0, localization=1.0)
    passes = VectorizedPasses(posterior, posterior.anchor_row.repeat(2, 1), record=True)
    for _ in range(CHECKS + 1):
        for scale in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0):  # more kinds than are recorded
            for size in (4, 5):
                assert passes.loss(batch(scale, size)).tolist() == [3 * scale] * 2
