"""What a loss must be: sums, bare outputs, samples that are not finite, components that the loss does not use."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from models import Classifier, blobs, few_draws, loader_of, trainer_for
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt

Loss = Callable[[nn.Module, Any], Tensor]
SETTINGS: dict[str, Any] = {"sampler": slt.SGLD(step_size=1e-4), "nbeta": 10.0, "localization": 1.0}


def net(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, outputs))


def estimate(loss_fn: Any, module: nn.Module | None = None, data: Any = None, **changes: Any) -> Any:
    few = slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=0, batch_size=changes.pop("batch_size", 16))
    return slt.estimate(
        module or net(), blobs(64) if data is None else data, [slt.LLC()],
        loss_fn=loss_fn, **{"sampling": few, **SETTINGS, **changes},
    )  # fmt: skip


def entropy(reduction: str) -> Loss:
    return lambda module, batch: F.cross_entropy(module(batch[0]), batch[1], reduction=reduction)


def decayed(module: nn.Module, batch: Any) -> Tensor:
    return entropy("sum")(module, batch) + 1e-2 * sum(p.square().sum() for p in module.parameters())


def density(module: nn.Module, batch: Any) -> Tensor:
    """Negative log density of a narrow normal: negative where the fit is good."""
    return -100.0 + module(batch[0]).square().sum()


def evidence(module: nn.Module, batch: Any) -> Tensor:
    """As variational autoencoders are often written: summed over pixels and samples, with fresh noise."""
    return (module(batch[0] + 0.01 * torch.randn_like(batch[0])) - 1).square().sum()


SUMS = {"sum": entropy("sum"), "with decay": decayed, "noisy": evidence}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_over_samples_is_refused(name: str) -> None:
    with pytest.raises(slt.PreflightError, match="sum over samples, expected their mean") as caught:
        estimate(SUMS[name])
    assert "reduction='mean'" in str(caught.value)
    assert "def loss_fn(module, batch)" in str(caught.value)


def test_a_sum_that_is_zero_at_the_anchor_is_refused() -> None:
    module = nn.Linear(4, 1)
    x = blobs(64).tensors[0]
    data = TensorDataset(x, module(x).detach())
    with pytest.raises(slt.PreflightError, match="sum over samples"):
        estimate(lambda m, b: F.mse_loss(m(b[0]), b[1], reduction="sum"), module, data)


def test_a_summed_training_step_is_refused_before_the_first_step() -> None:
    class Summed(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert self.trainer.global_step == 0
            return F.cross_entropy(self(batch[0]), batch[1], reduction="sum")

    trainer = trainer_for(few_draws(), max_epochs=1)
    with pytest.raises(slt.PreflightError, match="sum over samples"):
        trainer.fit(Summed(), loader_of(blobs()))
    assert trainer.global_step == 0


def contrastive(scale: float) -> Loss:
    """Every other sample of the batch is a candidate: each copy adds one, and log k to the loss."""

    def loss(module: nn.Module, batch: Any) -> Tensor:
        out = F.normalize(module(batch[0]), dim=1)
        return F.cross_entropy(scale * out @ out.T, torch.arange(len(out)))

    return loss


def paired(module: nn.Module, batch: Any) -> Tensor:
    assert len(batch[0]) == 16, "a batch size of its own"
    return entropy("mean")(module, batch)


LEGAL = {
    "mean": entropy("mean"),
    "per sample": entropy("none"),
    "per token": lambda module, batch: module(batch[0]).square(),
    "negative": lambda module, batch: -100.0 + entropy("mean")(module, batch),
    "mean with decay": lambda module, batch: entropy("mean")(module, batch) + 10 * module[0].weight.square().sum(),
    "one batch size": paired,
    "noisy": lambda module, batch: entropy("mean")(module, (batch[0] + torch.randn_like(batch[0]), batch[1])),
    **{f"contrastive {scale}": contrastive(scale) for scale in (0.1, 1.0, 4.0, 16.0, 64.0)},
}


@pytest.mark.parametrize("name", LEGAL)
def test_every_other_loss_passes(name: str) -> None:
    assert math.isfinite(estimate(LEGAL[name], data=blobs(200))["llc"].mean)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.55, 0.6, 0.65, math.log(2), 0.75, 0.8, 1.0])
def test_no_contrastive_loss_is_taken_for_a_sum(target: float) -> None:
    """``a + log k`` is ``2 a`` at a = log 2, and ``3 a`` at a = log(3)/2: at no value both."""
    from lightning_slt.data import load_data
    from lightning_slt.soundness import check_mean

    def loss(weights: Any, batch: Any) -> Tensor:
        return torch.tensor(target + math.log(len(batch[0]) / 16))

    check_mean(loss, {}, load_data(blobs(64)), slt.SamplingConfig(batch_size=48))


def test_ragged_sums_are_refused_too() -> None:
    """Batches are doubled through the loader's own collate function."""
    samples = [torch.randn(3 + i % 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    loader = DataLoader(samples, batch_size=4, collate_fn=lambda s: pad_sequence(s, batch_first=True))
    with pytest.raises(slt.PreflightError, match="sum over samples"):
        estimate(lambda m, b: m(b).square().sum(), nn.Linear(4, 2), loader)


class TestBareOutputs:
    def test_logits_are_told(self) -> None:
        class Named:
            def __init__(self, logits: Tensor) -> None:
                self.logits = logits

        class WithLogits(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net()

            def forward(self, x: Tensor) -> Any:
                return Named(self.net(x))

        class Lightning(Classifier):
            def __init__(self) -> None:
                super().__init__(net())

        for loss_fn, module in (
            (lambda m, b: m(b[0]), net()),
            (lambda m, b: m.net(b[0]), Lightning()),
            (lambda m, b: m(b[0]).logits, WithLogits()),
        ):
            with pytest.warns(UserWarning, match=r"own output of shape \(16, 3\).*predictions rather than losses"):
                estimate(loss_fn, module)

    @pytest.mark.parametrize(
        "loss_fn",
        [
            lambda m, b: m(b[0]).square(),
            lambda m, b: -m(b[0]).log_softmax(1),
            lambda m, b: m(b[0]) + 0.5,
            lambda m, b: 50 * m(b[0]).square() - math.log(10),
        ],
    )
    def test_losses_per_token_are_not(self, loss_fn: Loss) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            estimate(loss_fn)

    def test_nor_are_those_of_a_module_that_is_a_loss(self) -> None:
        """Of both signs, and the very output of a part of the network, which is torch's own loss."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.criterion = net(), nn.PoissonNLLLoss(log_input=True, reduction="none")

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = estimate(lambda m, b: m.criterion(m.net(b[0]), 3.0 * F.one_hot(b[1], 3)), Net())
        assert math.isfinite(found["llc"].mean)

    def test_hooks_are_taken_away_again(self) -> None:
        module = net()
        estimate(entropy("none"), module)
        assert all(not part._forward_hooks for part in module.modules())


def with_missing(value: float, *rows: int) -> TensorDataset:
    x, y = blobs(64).tensors
    x[list(rows), 1] = value
    return TensorDataset(x, y)


class TestNotFinite:
    """Row 40 is not in the first minibatch."""

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("form", ["tensors", "samples", "loader"])
    def test_samples_are_named(self, form: str, value: float) -> None:
        data: Any = with_missing(value, 40, 3)
        if form == "samples":
            data = [(x.numpy(), int(y)) for x, y in data]
        if form == "loader":
            data = DataLoader(
                data, collate_fn=lambda s: (torch.stack([a for a, _ in s]), torch.stack([b for _, b in s]))
            )
        with pytest.raises(slt.PreflightError, match=r"NaN or infinity in them.*: 3, 40 of 64"):
            estimate(entropy("mean"), data=data)

    def test_before_training_starts(self) -> None:
        trainer = trainer_for(few_draws(), max_epochs=1)
        with pytest.raises(slt.PreflightError, match=r"NaN or infinity in them.*: 40 of 64"):
            trainer.fit(Classifier(), loader_of(with_missing(math.nan, 40)))
        assert trainer.global_step == 0

    def test_what_the_loss_masks_may_be_missing(self) -> None:
        """As in regressions with missing targets: the same number as with anything else in their place."""

        def masked(module: nn.Module, batch: Any) -> Tensor:
            x = batch[0]
            return F.cross_entropy(module(torch.where(x.isfinite(), x, 0.0)), batch[1])

        missing, zero = (estimate(masked, data=with_missing(v, 3, 40))["llc"].mean for v in (math.nan, 0.0))
        assert missing == zero

    def test_a_gradient_that_is_nan_is_told_from_a_step_that_is_too_long(self) -> None:
        module = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            module.weight.zero_()
        with pytest.raises(slt.PreflightError, match="its gradient is NaN there"):
            estimate(lambda m, b: (m(b[0]).square().sum(1)).sqrt().mean() + 1, module)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.unused = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


@pytest.mark.parametrize("components", ["layers", "unused", {"x": slt.Component(("unused.weight", "unused.bias"))}])
def test_components_that_the_loss_does_not_use_are_named(components: Any) -> None:
    name = "x" if isinstance(components, dict) else "unused"
    with pytest.raises(slt.PreflightError) as caught:
        estimate(entropy("mean"), TwoHeads(), components=components)
    assert f"with the 18 weights of '{name}' moved away from it" in str(caught.value)
    assert "Leave unused.weight, unused.bias out of components=" in str(caught.value)


def test_unused_weights_beside_others_are_legal() -> None:
    assert math.isfinite(estimate(entropy("mean"), TwoHeads())["llc"].mean)


class TestSizes:
    """Of data sets that no one has, and that someone tries first."""

    def test_one_sample(self) -> None:
        one = estimate(entropy("mean"), data=TensorDataset(*(t[:1] for t in blobs().tensors)))["llc"]
        many = estimate(entropy("mean"), data=TensorDataset(*(t[[0, 0, 0]] for t in blobs().tensors)))["llc"]
        assert math.isfinite(one.mean)
        torch.testing.assert_close(one.per_chain, many.per_chain, rtol=1e-3, atol=1e-5)

    def test_batches_larger_than_the_data_are_the_data(self) -> None:
        whole, more = (estimate(entropy("mean"), batch_size=size)["llc"].per_chain for size in (64, 1000))
        assert torch.equal(whole, more)

    @pytest.mark.parametrize("data", [TensorDataset(torch.empty(0, 4), torch.empty(0).long()), [], DataLoader([])])
    def test_none(self, data: Any) -> None:
        with pytest.raises(ValueError, match=r"the data set has no samples; pass data= a Dataset with at least one"):
            estimate(entropy("mean"), data=data)
        trainer = trainer_for(few_draws(data=data), max_epochs=1)
        with pytest.raises(ValueError, match="the data set has no samples"):
            trainer.fit(Classifier(), loader_of(blobs()))

    def test_a_stream_without_data_of_its_own(self) -> None:
        class Endless(torch.utils.data.IterableDataset[Any]):
            def __iter__(self) -> Any:
                yield from blobs()

        trainer: pl.Trainer = trainer_for(few_draws(), max_epochs=1)
        with pytest.raises(TypeError, match=r"Endless is a stream without a length.*pass data= a map-style Dataset"):
            trainer.fit(Classifier(), DataLoader(Endless(), batch_size=8))
        assert trainer.global_step == 0
