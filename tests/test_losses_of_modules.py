"""Losses of any LightningModule: every form of training_step, precisions, losses per sample."""

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import oracles
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
import zoo
from torch import Tensor, nn
from torch.func import vmap
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.functional import ModuleLoss, derive_loss, per_sample_losses
from lightning_slt.isolation import isolated

X, Y = zoo._data(40, 4, dtype=torch.float32), torch.arange(40) % 3
DATA = TensorDataset(X, Y)


class Plain(pl.LightningModule):
    """The ordinary case: cross-entropy, logged; subclasses change how it is said."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
        self.accuracy = torchmetrics.MeanMetric()

    def compute(self, batch: Any) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        self.accuracy(loss)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.compute(batch)


class WithoutIndex(Plain):
    def training_step(self, batch: Any) -> Any:
        return self.compute(batch)


class OtherName(Plain):
    def training_step(self, batch: Any, i: int) -> Any:
        assert i == 0
        return self.compute(batch)


class WithDefault(Plain):
    def training_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        assert (batch_idx, dataloader_idx) == (0, 0)
        return self.compute(batch)


class KeywordOnly(Plain):
    def training_step(self, batch: Any, *, batch_idx: int) -> Any:
        return self.compute(batch)


class Anything(Plain):
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return self.compute(args[0])


class PositionalOnly(Plain):
    def training_step(self, batch: Any, index: int, /) -> Any:
        assert index == 0
        return self.compute(batch)


class ReturnsDict(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.compute(batch), "extra": 1}


class OwnLoss(Plain):
    def per_sample_loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("per_sample_loss comes first")


MODULES = [
    Plain, WithoutIndex, OtherName, WithDefault, KeywordOnly, Anything, PositionalOnly, ReturnsDict, OwnLoss
]  # fmt: skip


def read(module: nn.Module, data: Any = DATA, loss_fn: Callable[..., Tensor] | None = None, **more: Any) -> Tensor:
    counts = {"num_chains": 3, "num_draws": 4, "num_burnin": 1, "batch_size": 8, "seed": 1} | more
    found = slt.estimate(
        module,
        data,
        [slt.LLC(traces=True)],
        loss_fn=loss_fn,
        sampler=slt.SGLD(step_size=1e-3),
        nbeta=20.0,
        localization=1.0,
        sampling=slt.SamplingConfig(**counts),
    )["llc"]
    assert found.health.dead_chains == {}
    assert bool((found.traces["loss"] != 0).all())
    return found.traces["loss"]


@pytest.mark.parametrize("kind", MODULES)
def test_every_form_of_training_step_gives_the_same_llc(kind: type[Plain]) -> None:
    plain = read(kind().double().net, TensorDataset(X.double(), Y), slt.losses.classification)
    found = read(kind().double(), TensorDataset(X.double(), Y))
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-11)


def test_loss_fn_comes_before_all_else() -> None:
    module = OwnLoss()
    found = read(module, DATA, lambda m, b: m.net(b[0]).square().mean())
    assert not torch.equal(found, read(module))


def test_regression_with_double_targets_runs_in_the_weights_precision() -> None:
    torch.manual_seed(0)
    net, y = nn.Linear(4, 1), zoo._data(40, 1)
    found = read(net, TensorDataset(X, y), slt.losses.regression)
    torch.testing.assert_close(found, read(net, TensorDataset(X, y.float()), slt.losses.regression), rtol=0, atol=0)


@pytest.mark.parametrize("route", ["vectorized", "sequential"])
def test_half_precision_modules_are_sampled_in_single(route: str) -> None:
    """At w ≈ 1 a bfloat16 step of 1e-3 would be lost: the trace equals that of the same weights in float32."""
    torch.manual_seed(0)
    half = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).bfloat16()
    single = copy.deepcopy(half).float()
    found = read(half, DATA, slt.losses.classification, chain_method=route)
    assert torch.equal(found, read(single, DATA, slt.losses.classification, chain_method=route))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_double_modules_are_sampled_in_double() -> None:
    """Losses that differ by less than a float32 could show."""
    found = read(Plain().double(), TensorDataset(X.double(), Y))
    assert not torch.equal(found, found.float().double())
    assert torch.equal(read(Plain()), read(Plain()).float().double())


@pytest.mark.parametrize("route", ["vectorized", "sequential"])
def test_under_autocast_weights_are_cast_anew_at_every_draw(route: str) -> None:
    """Autocast's cache of cast weights goes by identity, and chains move theirs in place."""
    module = Plain()
    module.net[2].p = 0.0
    with torch.autocast("cpu", torch.bfloat16):
        found = read(module, chain_method=route, num_draws=40)
    plain = read(module, chain_method=route, num_draws=40)
    assert not torch.equal(found, plain)
    assert 0.8 < float(found[:, -10:].mean() / plain[:, -10:].mean()) < 1.25
    assert len(found.unique()) > 60  # bfloat16 losses: coarse, yet they move with the weights


def test_a_stochastic_loss_has_one_value_at_one_place() -> None:
    class Noisy(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            return F.cross_entropy(self.net(x + torch.randn_like(x)), y)

    module = Noisy()
    twice = [read(module, chain_method=route) for route in ("vectorized", "sequential", "vectorized")]
    assert torch.equal(twice[0], twice[2])
    torch.testing.assert_close(twice[0], twice[1], rtol=1e-4, atol=1e-5)


class TestPerSampleLosses:
    def losses(self, module: nn.Module, batch: Any = (X, Y), loss_fn: Callable[..., Tensor] | None = None) -> Tensor:
        with isolated(module, seed=0), torch.no_grad():
            loss = ModuleLoss(module, loss_fn)
            return per_sample_losses(loss, loss.weights, batch)

    @pytest.mark.parametrize("kind", MODULES)
    def test_derived_from_a_mean_loss(self, kind: type[Plain]) -> None:
        module = kind()
        found = self.losses(module)
        expected = F.cross_entropy(module.eval().net(X), Y, reduction="none")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", zoo.MODELS)
    def test_of_every_model(self, name: str) -> None:
        module, data, kind = zoo.model(name)
        batch = data.tensors
        found = self.losses(module, batch, lambda m, b: kind.loss(m, b).mean())
        with torch.no_grad():
            expected = kind.loss(module.eval(), batch).reshape(len(data), -1).mean(1)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    def test_taken_as_they_are_where_given(self) -> None:
        tokens = self.losses(nn.Linear(4, 3), (X, Y), lambda m, b: m(b[0]).square())
        assert tokens.shape == (40, 3)

    def test_one_by_one_where_vmap_refuses(self) -> None:
        def refusing(module: nn.Module, batch: Any) -> Tensor:
            out = module(batch[0])
            return F.cross_entropy(out / (1 + 0 * out.sum().item()), batch[1])

        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        expected = F.cross_entropy(net(X), Y, reduction="none")
        torch.testing.assert_close(self.losses(net, (X, Y), refusing), expected.detach(), rtol=1e-5, atol=1e-6)

    def test_a_loss_that_mixes_samples_is_refused_with_the_lines_to_write(self) -> None:
        def contrastive(module: nn.Module, batch: Any) -> Tensor:
            out = F.normalize(module(batch[0]), dim=1)
            return F.cross_entropy(out @ out.T, torch.arange(len(out)))

        with pytest.raises(TypeError, match=r"no mean over samples; write one of:\n +def loss_fn\(module, batch\)"):
            self.losses(nn.Linear(4, 3), (X, Y), contrastive)

    def test_a_sum_is_refused(self) -> None:
        with pytest.raises(TypeError, match="it is no mean over samples"):
            self.losses(nn.Linear(4, 3), (X, Y), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"))

    def test_wrong_length_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"shape \(3,\) for 40 samples"):
            self.losses(nn.Linear(4, 3), (X, Y), lambda m, b: m(b[0]).mean(0))

    def test_samples_that_cannot_be_told_apart_are_refused(self) -> None:
        with pytest.raises(TypeError, match=r"first axes \[4, 40\]"):
            self.losses(nn.Linear(4, 3), (X, torch.zeros(4)), lambda m, b: m(b[0]).mean() + b[1].mean())

    def test_inside_chains(self) -> None:
        """Samples under vmap within chains under vmap: attention and convolutions keep their rules apart."""
        for name in ("cnn", "tied"):
            module, data, kind = zoo.model(name)
            with isolated(module, seed=0), torch.no_grad():
                loss = ModuleLoss(module, lambda m, b, kind=kind: kind.loss(m, b).mean())
                stacked = {k: torch.stack([w, w + 0.1 * torch.ones_like(w)]) for k, w in loss.weights.items()}
                batch = tuple(t[:5] for t in data.tensors)
                both = vmap(lambda w, loss=loss, batch=batch: per_sample_losses_unchecked(loss, w, batch))(stacked)
                for chain in range(2):
                    alone = per_sample_losses(loss, {k: w[chain] for k, w in stacked.items()}, batch)
                    torch.testing.assert_close(both[chain], alone, rtol=1e-9, atol=1e-9)


def per_sample_losses_unchecked(loss: Any, weights: dict[str, Tensor], batch: Any) -> Tensor:
    from lightning_slt.batching import ChainRules

    with ChainRules():
        return vmap(lambda *sample: loss(weights, tuple(t[None] for t in sample)))(*batch)


def penalty_by_autograd(module: nn.Module, batch: Any) -> Tensor:
    x = batch[0].clone().requires_grad_()
    out = module(x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return F.cross_entropy(out, batch[1]) + slope.square().mean()


def penalty_by_transform(module: nn.Module, batch: Any) -> Tensor:
    slope = torch.func.grad(lambda x: module(x).sum())(batch[0])
    return F.cross_entropy(module(batch[0]), batch[1]) + slope.square().mean()


def penalty_by_jvp(module: nn.Module, batch: Any) -> Tensor:
    out, change = torch.func.jvp(module, (batch[0],), (torch.ones_like(batch[0]),))
    return F.cross_entropy(out, batch[1]) + change.square().mean()


def through_nested_tensors(module: nn.Module, batch: Any) -> Tensor:
    rows = torch.nested.nested_tensor([x.expand(3 + i % 3, -1) for i, x in enumerate(batch[0])], layout=torch.jagged)
    return F.cross_entropy(torch.stack([row.mean(0) for row in module[0](rows).unbind()]), batch[1])


def llc_of(loss_fn: Any, **options: Any) -> Tensor:
    torch.manual_seed(0)
    config = slt.SamplingConfig(num_chains=2, num_draws=10, num_burnin=0, batch_size=16, **options)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    sampler = slt.SGLD(step_size=1e-4)
    results = slt.estimate(
        net, DATA, [slt.LLC()], loss_fn=loss_fn, sampling=config, sampler=sampler, nbeta=30.0, localization=100.0
    )
    return results["llc"].per_chain


LOSSES_THAT_DIFFERENTIATE = [penalty_by_autograd, penalty_by_transform, penalty_by_jvp]


@pytest.mark.filterwarnings("ignore:the loss cannot be vectorized")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # torch's own, in its forward mode
@pytest.mark.parametrize("loss_fn", [*LOSSES_THAT_DIFFERENTIATE, through_nested_tensors])
def test_losses_that_nobody_can_look_into(loss_fn: Any) -> None:
    """However memory is measured, the numbers are those of chains one at a time, where nothing is measured."""
    plain = llc_of(loss_fn, chain_method="sequential", chunk_size=1)
    torch.testing.assert_close(llc_of(loss_fn), plain, rtol=1e-3, atol=1e-4)
    assert bool(plain.isfinite().all())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize("loss_fn", LOSSES_THAT_DIFFERENTIATE)
def test_losses_that_take_derivatives_need_no_more_than_their_own_code(loss_fn: Any) -> None:
    def with_graph(module: nn.Module, batch: Any) -> Tensor:
        with torch.enable_grad():
            return loss_fn(module, batch)

    options = {"chain_method": "sequential", "chunk_size": 1}
    assert torch.equal(llc_of(loss_fn, **options), llc_of(with_graph, **options))


def test_complex_parameters_are_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    net.register_parameter("phase", nn.Parameter(torch.zeros(3, dtype=torch.complex64)))
    with pytest.raises(TypeError, match=r"'phase' is complex.*view_as_complex"):
        slt.estimate(net, DATA, [slt.LLC()], loss_fn=slt.losses.classification)


def test_losses_ready_made() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    torch.testing.assert_close(
        slt.losses.classification(net, (X, Y)), -net(X).log_softmax(1)[torch.arange(40), Y], rtol=1e-5, atol=1e-6
    )
    target = torch.randn(40, 3)
    torch.testing.assert_close(slt.losses.regression(net, (X, target)), (net(X) - target).pow(2).mean(1))
    module, data, _ = zoo.model("tied")
    tokens = data.tensors[0]
    logits = module.eval()(tokens)
    expected = torch.stack(
        [-logits[:, t].log_softmax(1)[torch.arange(40), tokens[:, t + 1]] for t in range(tokens.shape[1] - 1)], 1
    )
    for batch in (tokens, (tokens,), {"input_ids": tokens}, {"input_ids": tokens, "labels": tokens}):
        torch.testing.assert_close(slt.losses.next_token(module, batch), expected, rtol=1e-9, atol=1e-9)
    labels = tokens.clone()
    labels[:, 3] = slt.losses.IGNORED
    masked = slt.losses.next_token(module, {"input_ids": tokens, "labels": labels})
    assert bool((masked[:, 2] == 0).all())
    assert masked.shape == expected.shape


def test_weights_given_replace_and_the_rest_stays_as_it_was() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    loss = ModuleLoss(net, slt.losses.classification)
    at_anchor = loss({}, (X, Y))
    with torch.no_grad():
        net.weight.add_(1.0)  # training goes on
    assert torch.equal(loss({}, (X, Y)), at_anchor)
    moved = loss({"bias": loss.weights["bias"] + torch.tensor([1.0, 0.0, 0.0])}, (X, Y))
    assert not torch.equal(moved, at_anchor)
    assert derive_loss(net, slt.losses.classification) is slt.losses.classification
    assert oracles.module_gradient(net, slt.losses.classification, (X, Y))["bias"].shape == (3,)
