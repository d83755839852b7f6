"""Recorded passes: the same bits as the passes themselves, and none where a recording would be wrong."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
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
from lightning_slt.passes import CHECKS, SequentialPasses, VectorizedPasses
from lightning_slt.preflight import choose_route
from lightning_slt.tracing import record
from lightning_slt.types import Params, Product

UNRECORDED = {"cnn", "lstm"}  # counts its calls in a buffer; has a kernel that Python cannot call


ROUTES = {"vectorized": VectorizedPasses, "sequential": SequentialPasses}
CASES = [(r, name) for r in ROUTES for name, kind in zoo.MODELS.items() if r == "sequential" or kind.vectorizes]


@pytest.mark.parametrize(("route", "name"), CASES)
@pytest.mark.parametrize("shared", [False, True])
def test_bits_of_the_passes_themselves(route: str, name: str, shared: bool) -> None:
    module, data, kind = zoo.model(name, torch.float32)
    g = torch.Generator().manual_seed(0)
    calls = 0
    with isolated(module, seed=0):
        module_loss = ModuleLoss(module, kind.loss)

        def loss(weights: Params, batch: Any) -> Tensor:
            nonlocal calls
            calls += 1
            return module_loss(weights, batch)

        posterior = slt.LocalPosterior(loss=module_loss, anchor=dict(module_loss.weights), nbeta=1.0, localization=1.0)
        position = posterior.anchor_row.repeat(3, 1)
        recorded = ROUTES[route](replace(posterior, loss=loss), position, record=True)
        plain = ROUTES[route](posterior, position)
        samples = oracles.in_memory(data)
        for step in range(CHECKS + 2):
            position += 0.1 * torch.randn(position.shape, generator=g)
            batch = samples.chain_batch(torch.randint(len(data), (16,) if shared else (3, 16), generator=g))
            before = calls
            (ours, ours_rows), (theirs, their_rows) = (p.loss_and_gradient(batch) for p in (recorded, plain))
            assert torch.equal(ours, theirs)
            assert torch.equal(ours_rows.rows, their_rows.rows)
            # recurrent kernels round apart where no gradient is asked for
            assert torch.equal(recorded.loss(batch), ours if kind.vectorizes else plain.loss(batch))
            assert (calls == before) == (step >= CHECKS and name not in UNRECORDED)


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("encoder", "tied", "wide"))]
)
def test_recorded_chains_do_not_depend_on_their_company(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = test_reproducibility.run(name, torch.float32, chain_method="vectorized")
    monkeypatch.setattr(sampling, "RECORDED_FROM", 0)
    whole = test_reproducibility.run(name, torch.float32, chain_method="vectorized")
    assert torch.equal(whole, plain)
    for chunk_size in (1, 2, 3):
        some = test_reproducibility.run(name, torch.float32, chain_method="vectorized", chunk_size=chunk_size)
        assert torch.equal(some, whole)


@pytest.mark.parametrize("name", ["mlp", "rnn", "lstm"])
def test_recorded_chains_one_after_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = test_reproducibility.run(name, torch.float32, chain_method="sequential")
    monkeypatch.setattr(sampling, "RECORDED_FROM", 0)
    for chunk_size in (1, 5):
        some = test_reproducibility.run(name, torch.float32, chain_method="sequential", chunk_size=chunk_size)
        assert torch.equal(some, plain)


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
    added: list[torch.Size] = []
    add_to = Product.add_to

    def noted(self: Product, target: Tensor, *, scale: float) -> None:
        added.append(target.shape[1:])
        add_to(self, target, scale=scale)

    monkeypatch.setattr(Product, "add_to", noted)
    plain = wide_walk()
    assert not added
    monkeypatch.setattr(sampling, "RECORDED_FROM", 0)
    whole = wide_walk()
    assert set(added) == {torch.Size([101, 210])}
    torch.testing.assert_close(whole, plain, rtol=1e-10, atol=1e-10)
    for chunk_size in (1, 2, 3):
        assert torch.equal(wide_walk(chunk_size=chunk_size), whole)
    assert torch.equal(wide_walk(num_chains=2), whole[:2])


def long_run(loss: Any, count: int = 300, **more: Any) -> list[slt.Draw]:
    posterior = slt.LocalPosterior(loss=loss, anchor={"w": torch.zeros(3)}, nbeta=10.0, localization=1.0)
    config = slt.SamplingConfig(num_chains=2, num_draws=count, num_burnin=0, batch_size=4, **more)
    data = oracles.in_memory(TensorDataset(torch.arange(36.0).view(12, 3).sin()))
    return list(slt.sample(posterior, slt.SGLD(step_size=1e-2), data, config))


@pytest.mark.parametrize(("route", "passes"), [("vectorized", 1), ("sequential", 2)])
def test_a_long_run_calls_the_loss_a_few_times(route: str, passes: int) -> None:
    calls = 0

    def loss(weights: Params, batch: Sequence[Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return (weights["w"] - batch[0]).square().sum(-1)

    assert len(long_run(loss, chain_method=route)) == 300
    # loss and gradient at the draws, loss at the anchor, loss at the last draw: each recorded once, then compared
    assert 0 < calls <= 3 * (1 + CHECKS * passes)


@pytest.mark.parametrize(("route", "passes"), [("vectorized", 1), ("sequential", 2)])
def test_a_loss_that_counts_its_calls_is_not_recorded(route: str, passes: int) -> None:
    calls = 0

    def loss(weights: Params, batch: Sequence[Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return calls * (weights["w"] - batch[0]).square().sum(-1)

    long_run(loss, chain_method=route)
    assert calls > 300 * passes


@pytest.mark.parametrize("route", ROUTES)
def test_a_recording_is_compared_on_the_second_minibatch_too(route: str) -> None:
    minibatch = 0

    def loss(weights: Params, batch: Sequence[Tensor]) -> Tensor:
        return (1.0 if minibatch == 0 else 2.0) * (weights["w"] - batch[0]).square().sum(-1)

    posterior = slt.LocalPosterior(loss=loss, anchor={"w": torch.zeros(3)}, nbeta=1.0, localization=1.0)
    passes = ROUTES[route](posterior, posterior.anchor_row.repeat(2, 1), record=True)
    batch = ChainBatch(*split_batch([torch.ones(2, 4, 3)]), False, torch.zeros(2, 4, dtype=torch.long))
    for expected in (3.0, 6.0, 6.0):
        assert passes.loss(batch).tolist() == [expected] * 2
        minibatch += 1


@pytest.mark.parametrize("steps", [20, 300])
def test_losses_that_decide_by_values_run_one_after_another(steps: int) -> None:
    """Whether the branch is taken changes in the middle of the run, long after a recording would have been compared."""

    def steep(weights: Params, batch: Sequence[Tensor], *, by_value: bool) -> Tensor:
        far = weights["w"].detach().norm() > 0.15
        scale = (3.0 if far.item() else 1.0) if by_value else torch.where(far, 3.0, 1.0)
        return scale * (weights["w"] - batch[0]).square().sum(-1)

    by_value, by_tensor = (
        [draw.loss for draw in long_run(partial(steep, by_value=b), steps, chain_method="sequential")]
        for b in (True, False)
    )
    assert torch.equal(torch.stack(by_value), torch.stack(by_tensor))


@pytest.mark.parametrize("route", ROUTES)
def test_gradients_of_parts_and_of_what_is_not_used(route: str) -> None:
    """A mask, a weight without effect, and a stack of matrices large enough to come as factors."""
    torch.manual_seed(0)
    anchor = {
        "used": torch.randn(2, 130, 150),
        "idle": torch.randn(3),
        "masked": torch.randn(5),
        "scale": torch.ones(()),
    }
    masks = {"masked": torch.tensor([True, False, True, True, False])}

    def loss(weights: Params, batch: Sequence[Tensor]) -> Tensor:
        heads = torch.einsum("bi,hoi->bho", batch[0], weights["used"])
        return weights["scale"] * heads.square().mean((1, 2)) + weights["masked"].square().sum()

    posterior = slt.LocalPosterior(loss=loss, anchor=anchor, nbeta=1.0, localization=1.0, masks=masks)
    position = posterior.anchor_row.repeat(2, 1)
    passes = ROUTES[route](posterior, position, record=True)
    for _ in range(CHECKS + 2):
        position += 0.1 * torch.randn(position.shape)
        x = torch.randn(2, 4, 150)
        _, gradient = passes.loss_and_gradient(
            ChainBatch(*split_batch([x]), False, torch.zeros(2, 4, dtype=torch.long))
        )
        for chain, row in enumerate(gradient.rows):
            used, _idle, masked, scale = (position[chain, leaf.start : leaf.stop] for leaf in posterior.leaves)
            w = used.view(2, 130, 150)
            heads = torch.einsum("bi,hoi->bho", x[chain], w)
            expected = 2 * scale * torch.einsum("bho,bi->hoi", heads, x[chain]) / (4 * 2 * 130)
            torch.testing.assert_close(row[: used.numel()], expected.flatten())
            torch.testing.assert_close(row[used.numel() + 3 : -1], 2 * masked)
            torch.testing.assert_close(row[-1], heads.square().mean())
            assert torch.equal(row[used.numel() : used.numel() + 3], torch.zeros(3))


@pytest.mark.parametrize("steps", [3, 300])
def test_minibatches_of_differing_length_are_not_recorded(steps: int) -> None:
    calls = 0

    def loss(weights: Params, batch: Sequence[Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return (weights["w"] - batch[0]).square().sum(-1)

    posterior = slt.LocalPosterior(loss=loss, anchor={"w": torch.zeros(3)}, nbeta=1.0, localization=1.0)
    passes = SequentialPasses(posterior, posterior.anchor_row.repeat(2, 1), record=True)
    batches = ([torch.ones(4, 3)], [2 * torch.ones(5, 3)])
    ragged = ChainBatch((), split_batch(batches[0])[1], False, torch.zeros(2, 4, dtype=torch.long), batches)
    for _ in range(steps):
        assert passes.loss(ragged).tolist() == [3.0, 12.0]
    assert calls == 2 * steps


NOT_RECORDED: dict[str, Any] = {
    "others": lambda x: [positive(x).sum()],
    "input": lambda x: [x.view(-1)],
    "random": lambda x: [x + torch.rand_like(x)],
    "dropout": lambda x: [F.dropout(x, 0.5, training=True)],
    "writes": lambda x: [x.add_(1.0)],
    "to-a-view": lambda x: [x[:1].mul_(2.0)],
    "to-a-chunk": lambda x: [x.chunk(2)[0].mul_(2.0) + 1],
    "to-a-row": lambda x: [x.unbind()[1].zero_() + 1],
    "by-list": lambda x: torch._foreach_mul_([x], 2.0) or [x + 1],
    "branches": lambda x: [x * 2 if bool(x.sum() > 0) else x],
    "item": lambda x: [x * x.sum().item()],
    "list": lambda x: [x * x.tolist()[0][0]],
    "numpy": lambda x: [x * float(x.numpy().sum())],
    "array": lambda x: [x * float(np.asarray(x).sum())],
    "dlpack": lambda x: [x * float(np.from_dlpack(x)[0, 0])],
    "address": lambda x: [x * (x.data_ptr() % 7)],
    "equal": lambda x: [x + 1 if torch.equal(x, x.abs()) else x - 1],
    "count": lambda x: [x * len(x[x > 0])],
    "mask": lambda x: [x[(x > 0).any(1)] * 1],
    "select": lambda x: [x.masked_select(x > 0).mean()],
    "where": lambda x: [x * len(torch.where(x > 0)[0])],
    "unique": lambda x: [x * len(x.unique())],
    "repeat": lambda x: [x.repeat_interleave(x[:, 0].long(), 0) * 1],
    "packed": lambda x: [nn.utils.rnn.pack_padded_sequence(x[None], x[:1, 0].long(), batch_first=True).data * 1],
    "attention": lambda x: [torch.aminmax(F.scaled_dot_product_attention(*[x[None, None]] * 3, dropout_p=0.5))[0]],
}


@pytest.mark.parametrize("what", NOT_RECORDED)
def test_what_is_not_recorded(what: str) -> None:
    assert record(NOT_RECORDED[what], [torch.ones(4, 2)]) is None


def test_attention_without_dropout_is_recorded() -> None:
    """Torch says that its fused kernels draw random numbers, whatever the dropout."""

    def run(x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        mixed = F.scaled_dot_product_attention(x, x.sin(), x.cos(), is_causal=True)
        return [mixed.detach(), *torch.autograd.grad(mixed.square().sum(), x)]

    replay = record(run, [torch.zeros(2, 2, 5, 8)])
    assert replay is not None
    x = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(replay(x), run(x), strict=True):
        assert torch.equal(found, expected)


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
    mean, var = torch.zeros(2), torch.ones(2)
    assert record(lambda x: [F.batch_norm(x, mean, var, training=True)], [torch.randn(4, 2)]) is None
    norm = nn.BatchNorm1d(2).train()
    assert record(lambda x: [norm(x)], [torch.randn(4, 2)]) is None
    assert record(lambda x: [norm.eval()(x)], [torch.randn(4, 2)]) is not None


def test_writing_to_what_it_made_itself_is_recorded() -> None:
    x = torch.randn(4, 2)
    replay = record(lambda x: [(x + 1).relu_().mul_(3.0)], [x])
    assert replay is not None
    (found,) = replay(-2 * x)
    assert torch.equal(found, 3 * (1 - 2 * x).relu())


def test_what_is_written_to_later_is_still_copied() -> None:
    def run(x: Tensor) -> list[Tensor]:
        y = x + 1
        return [torch.ops.aten.mul.Scalar(y, 1).add_(5.0), y]

    x = torch.randn(4, 2)
    replay = record(run, [x])
    assert replay is not None
    for found, expected in zip(replay(x), run(x), strict=True):
        assert torch.equal(found, expected)


@torch.library.custom_op("lightning_slt_tests::positive", mutates_args=())
def positive(x: Tensor) -> Tensor:
    """An operation of somebody else's, whose shape depends on values."""
    return x[x > 0].clone()


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
    for _ in range(CHECKS + 1):  # the last one is replayed alone
        assert passes.loss(batch(1.0, 4)).tolist() == [3.0] * 2
    for _ in range(CHECKS + 1):
        for scale in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0):  # more kinds than are recorded
            for size in (4, 5):
                assert passes.loss(batch(scale, size)).tolist() == [3 * scale] * 2


@pytest.mark.parametrize(("inputs", "hidden", "route"), [(20_000, 4, "vectorized"), (4, 20_000, "sequential")])
def test_the_route_hangs_on_activations_and_not_on_what_is_given(inputs: int, hidden: int, route: str) -> None:
    """Here 64 x 20 000 numbers are the minibatch, there they are activations."""
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 2))
    data = oracles.in_memory(TensorDataset(torch.randn(128, inputs), torch.arange(128) % 2))
    with isolated(net, seed=0):
        loss = ModuleLoss(net, slt.losses.classification)
        posterior = slt.LocalPosterior(loss=loss, anchor=dict(loss.weights), nbeta=1.0, localization=1.0)
        batch = data.chain_batch(torch.arange(128).view(2, 64))
        assert choose_route(posterior, batch, slt.SamplingConfig()).chain_method == route
