"""Training with readings is bit-identical to training without: what the network is, and what training does."""

from __future__ import annotations

import math
import random
from collections import defaultdict, deque
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import (
    Classifier,
    Shuffled,
    Validated,
    WithDropoutAndBatchNorm,
    assert_untouched,
    blob_loader,
    blobs,
    dropout_and_batchnorm,
    few_draws,
    footprint,
    loader_of,
)
from torch import nn
from torch.utils.data import default_collate
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lightning_slt.losses import classification

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_footprints_tell_runs_apart() -> None:
    """The comparison itself: one more random number, one other weight, one other batch are seen."""
    plain = footprint(Classifier, blob_loader)
    assert plain.differences(footprint(Classifier, blob_loader)) == []
    other = footprint(lambda: Classifier(lr=2e-2), blob_loader)
    assert any("weights" in d for d in plain.differences(other))
    drawn = footprint(Classifier, blob_loader, attributes=lambda m: torch.rand(()))
    assert any("attributes" in d for d in plain.differences(drawn))
    shuffled = footprint(Classifier, lambda: (torch.rand(()), blob_loader())[1])
    assert any("batches" in d for d in plain.differences(shuffled))


def test_dropout_and_batchnorm() -> None:
    assert_untouched(WithDropoutAndBatchNorm)


@pytest.mark.parametrize("batches", [2, 3])
def test_gradient_accumulation(batches: int) -> None:
    monitor = few_draws(every_n_train_steps=1)
    assert_untouched(WithDropoutAndBatchNorm, monitor=monitor, accumulate_grad_batches=batches)


def test_persistent_workers() -> None:
    def workers() -> Any:
        return loader_of(Shuffled(), num_workers=1, persistent_workers=True, multiprocessing_context="fork")

    assert_untouched(WithDropoutAndBatchNorm, workers)


def test_random_data() -> None:
    assert_untouched(Classifier, lambda: loader_of(Shuffled()))


def test_data_set_is_not_touched() -> None:
    kept = []

    def make() -> Any:
        kept.append(Shuffled())
        return loader_of(kept[-1])

    assert_untouched(Classifier, make)
    assert kept[0].calls == kept[1].calls
    assert kept[0].rng.bit_generator.state == kept[1].rng.bit_generator.state


class Measured(Classifier):
    """Holds torchmetrics that are logged on epoch and step, and computed by hand."""

    def __init__(self) -> None:
        super().__init__(dropout_and_batchnorm())
        self.accuracy = MulticlassAccuracy(num_classes=3)
        self.many = MetricCollection(
            {"top": MulticlassAccuracy(num_classes=3), "micro": MulticlassAccuracy(num_classes=3, average="micro")},
            prefix="train/",
        )
        self.confusion = MulticlassConfusionMatrix(num_classes=3)
        self.average = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.log("train/accuracy", self.accuracy, on_step=True, on_epoch=True, prog_bar=True)
        self.many.update(logits, y)
        self.confusion.update(logits, y)
        self.average.update(loss)
        self.log_dict({"train/loss": loss, "train/double": 2 * loss}, on_step=True, on_epoch=True)
        return {"loss": loss, "logits": logits.detach()}

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.many.compute())
        self.log("train/average", self.average.compute())
        self.many.reset()
        self.average.reset()


def test_torchmetrics() -> None:
    without, watched = assert_untouched(
        Measured, attributes=lambda m: [m.confusion.confmat, m.accuracy.tp, m.confusion._update_count]
    )
    assert int(watched.attributes[0].sum()) == 64
    assert any("train/top" in row for _, row in without.logged)


class Counting(Classifier):
    """Keeps its own books in attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("running", torch.zeros(3))
        self.calls = 0
        self.losses: list[float] = []
        self.by_class = {0: 0, 1: 0, 2: 0}
        self.last: Any = None
        self.total = torch.zeros(())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.calls += 1
        self.seen += len(y)
        self.running.mul_(0.9).add_(0.1 * F.one_hot(y, 3).float().mean(0))
        self.losses.append(float(loss.detach()))
        self.by_class[0] += 1
        self.last = loss.detach()
        self.total += loss.detach()
        self.log("train/seen", self.seen.float())
        self.log("train/calls", float(self.calls))
        return loss

    def books(self) -> Any:
        return [self.calls, self.losses, self.by_class, self.last, self.total]


@pytest.mark.filterwarnings("ignore:the loss cannot be vectorized:UserWarning")
def test_attributes_and_buffers() -> None:
    without, _ = assert_untouched(Counting, attributes=lambda m: m.books())
    assert without.attributes[0] == 8
    assert int(without.weights["seen"]) == 64


def test_error_inside_a_reading() -> None:
    class Failing(WithDropoutAndBatchNorm):
        failing = False

        def per_sample_loss(self, batch: Any) -> Any:
            torch.rand(3)
            if self.trainer.global_step == 4:
                raise RuntimeError("out of luck")
            return classification(self, batch)

    without = footprint(Failing, blob_loader)
    with pytest.warns(UserWarning, match=r"slt: the reading at step 4 failed: RuntimeError: out of luck"):
        watched = footprint(Failing, blob_loader, [few_draws()])
    assert without.differences(watched) == []
    ok = [row["slt/full/llc/ok"] for _, row in watched.monitor_rows]
    assert len(ok) == 5
    assert ok[2] == 0.0
    assert math.isnan(watched.monitor_rows[2][1]["slt/full/llc/mean"])


def test_lr_scheduler_and_clipping() -> None:
    class Scheduled(WithDropoutAndBatchNorm):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    assert_untouched(Scheduled, gradient_clip_val=0.5)


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}, {"num_sanity_val_steps": 0}])
def test_validation_in_between(options: Any) -> None:
    without, _ = assert_untouched(Validated, val=lambda: loader_of(blobs(16, seed=2), shuffle=False), **options)
    assert any("val/loss" in row for _, row in without.logged)


def test_at_every_hook() -> None:
    monitor = few_draws(every_n_train_steps=1, every_n_epochs=1, at_end=True, at_checkpoints=True)
    assert_untouched(WithDropoutAndBatchNorm, monitor=monitor, readings=9)


class Meter:
    """A helper object such as users write."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.peak = 0.0

    def update(self, value: float) -> None:
        self.values.append(value)
        self.peak = max(self.peak, value)


class Hoarding(Classifier):
    """Draws from generators of its own, and keeps books in nested containers, arrays and helper objects."""

    def __init__(self) -> None:
        super().__init__()
        self.numpy_rng = np.random.default_rng(0)
        self.legacy_rng = np.random.RandomState(0)
        self.python_rng = random.Random(0)
        self.torch_rng = torch.Generator().manual_seed(0)
        self.nested: Any = {"a": {"b": [0]}, "c": (torch.zeros(2), [])}
        self.counts: Any = defaultdict(int)
        self.recent: Any = deque(maxlen=3)
        self.histogram = np.zeros(3)
        self.meter = Meter()
        self.unregistered = [nn.BatchNorm1d(4)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        drawn = self.numpy_rng.normal() + self.legacy_rng.normal() + self.python_rng.random()
        x = self.unregistered[0](x) + 0.1 * drawn + 0.1 * torch.rand((), generator=self.torch_rng)
        loss = F.cross_entropy(self(x), y)
        value = float(loss.detach())
        self.nested["a"]["b"].append(value)
        self.nested["c"][0].add_(value)
        self.nested["c"][1].append(value)
        self.counts[len(self.counts)] += 1
        self.recent.append(value)
        self.histogram[0] += value
        self.meter.update(value)
        self.log("train/loss", loss)
        return loss

    def books(self) -> Any:
        batchnorm = self.unregistered[0].state_dict()
        meter = [self.meter.values, self.meter.peak]
        return [self.nested, dict(self.counts), list(self.recent), self.histogram.copy(), meter, batchnorm]


@pytest.mark.filterwarnings("ignore:the loss cannot be vectorized:UserWarning")
def test_own_generators_and_nested_books() -> None:
    without, _ = assert_untouched(Hoarding, attributes=lambda m: m.books())
    assert len(without.attributes[0]["c"][1]) == 8


def test_direct_use_of_the_logger() -> None:
    class Direct(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.logger.log_metrics({"direct": 1.0}, step=self.global_step)
            return loss

    without, _ = assert_untouched(Direct)
    assert sum("direct" in row for _, row in without.logged) == 8


class NoisyCollate:
    """Draws from a generator of its own, which the loader's collating in training uses too."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __call__(self, samples: list[Any]) -> Any:
        x, y = default_collate(samples)
        return x + float(self.rng.normal()), y


def test_collate_with_a_state() -> None:
    assert_untouched(Classifier, lambda: loader_of(blobs(), collate_fn=NoisyCollate()))


def test_module_collates() -> None:
    class DataModule(pl.LightningDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.rng = np.random.default_rng(0)
            self.data = blobs()

        def collate(self, samples: list[Any]) -> Any:
            x, y = default_collate(samples)
            return x + float(self.rng.normal()), y

        def train_dataloader(self) -> Any:
            return loader_of(self.data, collate_fn=self.collate)

    assert_untouched(Classifier, DataModule)
